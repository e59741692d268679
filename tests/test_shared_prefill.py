"""Sampling that reads each prompt once gives the completions of sampling that reads it for each of them."""

import pytest
import torch
from accelerate import Accelerator
from sharing import EVERY_FAMILY, TWO_FAMILIES, Counted, encode, family, load
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from vlm_entropy.trainers.shared_prefill import shared_prefill
from vlm_entropy.trainers.shared_prompt import PromptSharing, common_repeats

NEW_TOKENS = 6


def config_of(**options):
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, **options}
    return GenerationConfig(eos_token_id=257, pad_token_id=256, **options)


def inputs_of(folder, prompts):
    """What TRL passes on: token ids of each row, its images, and the processor's tensors."""
    encoded, images = encode(folder, prompts)
    ids = [row[mask.bool()].tolist() for row, mask in zip(encoded["input_ids"], encoded["attention_mask"])]
    fields = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in fields:
        rows = zip(fields["mm_token_type_ids"], encoded["attention_mask"])
        fields["mm_token_type_ids"] = [row[mask.bool()].tolist() for row, mask in rows]
    return ids, images if any(images) else None, fields


def padded(rows, fill=0):
    return pad_sequence([torch.tensor(row) for row in rows], True, fill, "left")


class Sampler:
    """TRL's sampler in short, and the widths of the forwards that it made."""

    def __init__(self, network, config):
        self.network, self.config, self.rows = network, config, []

    def __call__(self, prompt_ids, images, fields):
        self.rows.append(len(prompt_ids))
        torch.manual_seed(0)
        tensors = {name: padded(value) if isinstance(value, list) else value for name, value in fields.items()}
        masks = padded([[1] * len(ids) for ids in prompt_ids])
        ids = padded(prompt_ids, 256)
        with torch.no_grad():
            sampled = self.network.generate(
                input_ids=ids, attention_mask=masks, **tensors, generation_config=self.config
            )
        return sampled[:, ids.size(1) :].tolist()


def sampled(folder, prompts, *, mode, **options):
    """Completions, and what went through the model for them."""
    network = load(folder, share=False)
    config = config_of(**options)
    sampler, counted = Sampler(network, config), Counted(network)
    sharing = PromptSharing(mode, [network], accelerator=Accelerator(cpu=True), obstacle=None)
    return sharing.generate(sampler, config, *inputs_of(folder, prompts)), counted, sampler


@EVERY_FAMILY
@pytest.mark.parametrize(
    "options", [{"top_k": 1, "repetition_penalty": 3.0}, {"temperature": 0.7}], ids=["greedy", "sampled"]
)
def test_completions_are_those_of_reading_each_prompt_for_each_of_them(model_type, options):
    # Prompts of two lengths, one of them text alone, each four times in a row.
    prompts = [0] * 4 + [3] * 4 + [1] * 4
    expected, _, apart = sampled(family(model_type), prompts, mode="off", **options)
    actual, _, together = sampled(family(model_type), prompts, mode="on", **options)
    assert (apart.rows, together.rows) == ([12], [3])
    assert actual == expected
    different = len({tuple(row) for row in expected})
    assert 2 <= different <= 3 if "top_k" in options else different > 6


@EVERY_FAMILY
def test_a_prefill_takes_each_prompt_and_each_of_its_images_once(model_type):
    prompts, copies = [0, 1], 4
    rows = [prompt for prompt in prompts for _ in range(copies)]
    _, trl, _ = sampled(family(model_type), rows, mode="off")
    _, ours, _ = sampled(family(model_type), rows, mode="on")
    assert ours.tokens[0] * copies == trl.tokens[0]
    assert ours.tokens[1:] == trl.tokens[1:] == [len(rows)] * (NEW_TOKENS - 1)
    assert sum(ours.patches) * copies == sum(trl.patches)
    assert sum(ours.patches) == len(prompts) * (1 if model_type == "internvl" else 16)


@TWO_FAMILIES
@pytest.mark.parametrize("prompts", [[2] * 4 + [0] * 4, [3] * 4 + [2] * 4, [2] * 2 + [2] * 2], ids=str)
def test_completions_of_prompts_with_several_images_are_the_same(model_type, prompts):
    expected, _, _ = sampled(family(model_type), prompts, mode="off")
    actual, _, _ = sampled(family(model_type), prompts, mode="on")
    assert actual == expected


@TWO_FAMILIES
def test_text_alone_is_read_once_too(model_type):
    expected, trl, _ = sampled(family(model_type), [3] * 4, mode="off")
    actual, ours, sampler = sampled(family(model_type), [3] * 4, mode="on")
    assert actual == expected
    assert sampler.rows == [1]
    assert ours.tokens[0] * 4 == trl.tokens[0]
    assert not ours.patches


@pytest.mark.parametrize(
    ("prompts", "read"),
    [
        ([0] * 2 + [1] * 4 + [3] * 2, [4]),  # groups cut by the end of a process: by twos
        ([0] * 4 + [0] * 4, [1]),  # the same prompt twice
        ([0] * 4 + [1] * 3, [7]),  # 4 and 3 have no common divisor
        ([0, 1] * 4, [8]),  # the rows of a prompt do not follow each other
        ([0], [1]),
    ],
    ids=str,
)
def test_only_rows_that_follow_each_other_are_read_once(prompts, read):
    expected, _, _ = sampled(family("qwen2_5_vl"), prompts, mode="off")
    actual, _, sampler = sampled(family("qwen2_5_vl"), prompts, mode="on")
    assert sampler.rows == read
    assert actual == expected


@pytest.mark.parametrize(
    ("owner", "repeats"),
    [([0, 0, 1, 1], 2), ([0, 0, 0, 1, 1, 1], 3), ([0, 0, 1, 1, 1, 1], 2), ([0, 1, 0, 1], 1), ([0, 0, 1], 1), ([5], 1)],
)
def test_the_repetitions_that_all_runs_have_in_common(owner, repeats):
    assert common_repeats(owner) == repeats


def test_greedy_search_and_beams_are_left_alone():
    for options in ({"do_sample": False, "top_k": None}, {"num_return_sequences": 2}):
        _, _, sampler = sampled(family("qwen2_5_vl"), [0] * 4, mode="on", **options)
        assert sampler.rows == [4]


def test_nothing_of_it_stays_in_the_model_or_its_options():
    network, config = load(family("qwen2_5_vl"), share=False), config_of()

    def fail():
        with shared_prefill(network, config, 4):
            assert config.num_return_sequences == 4
            assert len(network._forward_hooks) == len(network._forward_pre_hooks) == 1
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert config.num_return_sequences is None
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_a_cache_repeated_in_another_order_is_seen(monkeypatch):
    expected, _, _ = sampled(family("qwen2_5_vl"), [0] * 4 + [3] * 4, mode="off")
    monkeypatch.setattr(
        "transformers.cache_utils.DynamicLayer.batch_repeat_interleave",
        lambda self, repeats: self.batch_select_indices(torch.arange(2).repeat(repeats)),
    )
    actual, _, sampler = sampled(family("qwen2_5_vl"), [0] * 4 + [3] * 4, mode="on")
    assert sampler.rows == [2]
    assert actual != expected
