"""Answers of a model: what they are, how long, how uncertain, and that batches, seeds and settings matter as said."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data.examples import chat_tokens
from vlm_entropy.data.families import FAMILIES, vision_token_ids
from vlm_entropy.data.generation import (
    Decoding,
    answer,
    conversation,
    load_model,
    plan_batches,
    prefetch,
    repeats_images_apart,
    token_entropy,
    tokenize,
)
from vlm_entropy.data.tiny import build_tiny_vlm

MODEL_TYPES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v"]
GREEDY = Decoding(max_new_tokens=6)
SAMPLED = replace(GREEDY, temperature=1.0)


def sharp_model(folder, model_type):
    build_tiny_vlm(model_type, folder, hidden_size=32)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 4
    model.save_pretrained(folder)
    return folder


def user(text):
    return [{"role": "user", "content": text}]


def picture(seed, size=(32, 32)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def conversations():
    """Prompts of unequal length, with no, one and two images of several sizes."""
    return [
        conversation(user("Where is the red square?"), [picture(1)]),
        conversation(user("Find the blue circle, please. " * 3), [picture(2, (64, 32)), picture(3)]),
        conversation(user("red"), []),
        conversation([{"role": "system", "content": "Think."}, *user("Where?")], [picture(4)]),
    ]


def test_entropy_of_rows_by_hand():
    # Logits ln 1, ln 2, ln 1: p = 1/4, 1/2, 1/4, H = 2 · 1/4 · ln 4 + 1/2 · ln 2 = 1.5 ln 2. A uniform row: ln 3.
    logits = torch.tensor([[0.0, math.log(2), 0.0], [5.0, 5.0, 5.0], [0.0, -torch.inf, -torch.inf]])
    expected = torch.tensor([1.5 * math.log(2), math.log(3), 0.0])
    torch.testing.assert_close(token_entropy(logits), expected, rtol=0, atol=1e-6)


def record_ids(model, inputs):
    """Have `generate` leave the token ids of its answers in the list that is returned."""
    kept, plain = [], model.generate

    def generate(**kwargs):
        ids = plain(**kwargs)
        kept.extend(ids[:, inputs["input_ids"].size(1) :])
        return ids

    model.generate = generate
    return kept


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_entropy_is_that_of_a_plain_forward_of_the_same_answer(tmp_path, model_type):
    folder = sharp_model(tmp_path / "model", model_type)
    model, processor = load_model(str(folder)), AutoProcessor.from_pretrained(folder)
    inputs = tokenize(processor, conversations())
    sampled = record_ids(model, inputs)
    answers = [one for [one] in answer(model, processor, inputs, decoding=SAMPLED, seed=3, with_entropy=True)]
    assert len({round(one.entropy, 2) for one in answers}) == 4
    for chat, one, tokens in zip(conversations(), answers, sampled, strict=True):
        alone, ids = tokenize(processor, [chat]), tokens[None, : one.tokens]
        fields = {name: value for name, value in alone.items() if name not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in fields:
            fields["mm_token_type_ids"] = torch.nn.functional.pad(fields["mm_token_type_ids"], (0, ids.size(1)))
        with torch.no_grad():
            logits = model(input_ids=torch.cat([alone["input_ids"], ids], dim=1), **fields).logits
        p = logits[0, -ids.size(1) - 1 : -1].double().softmax(dim=-1)
        assert one.entropy == pytest.approx(float(-(p * p.log()).sum(dim=-1).mean()), abs=2e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_padding_changes_no_greedy_answer_and_lengths_are_known_without_images(tmp_path, model_type):
    folder = sharp_model(tmp_path / "model", model_type)
    model, processor = load_model(str(folder)), AutoProcessor.from_pretrained(folder)
    options = {"decoding": GREEDY, "with_entropy": True}
    together = [one for [one] in answer(model, processor, tokenize(processor, conversations()), **options)]
    alone = [answer(model, processor, tokenize(processor, [chat]), **options)[0][0] for chat in conversations()]
    assert [one.text for one in together] == [one.text for one in alone]
    entropies = [one.entropy for one in together]
    assert entropies == pytest.approx([one.entropy for one in alone], abs=2e-5)
    assert len({round(entropy, 2) for entropy in entropies}) == 4
    sizes = [(64, 32), (32, 32)]
    text = "Find the blue circle, please. " * 3
    tokens, _ = chat_tokens(user(text), sizes, family=FAMILIES[model_type], processor=processor)
    assert tokens == tokenize(processor, [conversations()[1]])["input_ids"].size(1)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_several_answers_to_two_images_see_both_or_are_refused(tmp_path, monkeypatch, model_type):
    folder = sharp_model(tmp_path / "model", model_type)
    model, processor = load_model(str(folder)), AutoProcessor.from_pretrained(folder)
    inputs = tokenize(processor, [conversation(user("Find it."), [picture(1), picture(2)]), user("Find it.")])
    [one], _ = answer(model, processor, inputs, decoding=GREEDY)
    twice = Decoding(GREEDY.max_new_tokens, temperature=1e-4, samples=2)  # as good as greedy
    if repeats_images_apart(model):
        with pytest.raises(ValueError, match="cannot draw 2 answers to a prompt with several images"):
            answer(model, processor, inputs, decoding=twice)
        monkeypatch.setattr("vlm_entropy.data.generation.has_several_images", lambda *inputs: False)
        assert answer(model, processor, inputs, decoding=twice)[0] != [one, one]
    else:
        assert model_type != "glm4v"
        assert answer(model, processor, inputs, decoding=twice)[0] == [one, one]


def test_samples_follow_the_seed_and_leave_the_random_state_alone(tiny_model):
    model, processor = load_model(str(tiny_model)), AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    state = torch.get_rng_state()
    three = replace(SAMPLED, samples=3)
    first = answer(model, processor, inputs, decoding=three, seed=1)
    assert [len(samples) for samples in first] == [3, 3, 3, 3]
    assert all(len({one.text for one in samples}) > 1 for samples in first[:1])
    assert answer(model, processor, inputs, decoding=three, seed=1) == first
    assert answer(model, processor, inputs, decoding=three, seed=2) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_the_frequencies_of_first_tokens_are_the_models_probabilities(tiny_model):
    model, processor = load_model(str(tiny_model)), AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, [conversations()[0]])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].float()
    logits[sorted(vision_token_ids(model.config))] = -torch.inf
    probabilities = (logits / 0.5).softmax(dim=-1)
    likeliest = int(probabilities.argmax())
    decoding = Decoding(max_new_tokens=1, temperature=0.5, samples=2000)
    [samples] = answer(model, processor, inputs, decoding=decoding)
    count = sum(one.text == processor.tokenizer.decode(likeliest) for one in samples)
    p = float(probabilities[likeliest])
    assert 0.05 < p < 0.95
    assert count / 2000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 2000))


def test_a_narrow_nucleus_is_greedy(tiny_model):
    model, processor = load_model(str(tiny_model)), AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    narrow = answer(model, processor, inputs, decoding=replace(SAMPLED, top_p=1e-6))
    assert narrow == answer(model, processor, inputs, decoding=GREEDY)


def test_generation_settings_that_a_checkpoint_brings_count_for_nothing(tiny_model, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path)
    settings = json.loads((tiny_model / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 5.0, "do_sample": True, "top_k": 1, "temperature": 0.1, "min_length": 6}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    processor = AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    for decoding in (GREEDY, SAMPLED):
        plain = answer(load_model(str(tiny_model)), processor, inputs, decoding=decoding)
        assert answer(load_model(str(tmp_path)), processor, inputs, decoding=decoding) == plain


def test_an_end_token_ends_an_answer_and_is_its_last_token(tiny_model):
    model, processor = load_model(str(tiny_model)), AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    ids = record_ids(model, inputs)
    cut = [one for [one] in answer(model, processor, inputs, decoding=SAMPLED, seed=1)]
    assert all(one.is_truncated and one.tokens == 6 for one in cut)
    end = int(ids[0][2])
    model.generation_config.eos_token_id = [end]
    ended = [one for [one] in answer(model, processor, inputs, decoding=SAMPLED, seed=1)]
    assert ended[0].tokens == ids[0].tolist().index(end) + 1 <= 3
    assert not ended[0].is_truncated


def test_the_entropy_of_an_answer_that_ends_early_is_the_mean_over_its_own_tokens(tiny_model):
    model, processor = load_model(str(tiny_model)), AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    ids = record_ids(model, inputs)
    answer(model, processor, inputs, decoding=SAMPLED, seed=1)
    model.generation_config.eos_token_id = [int(ids[0][0])]
    together = [one for [one] in answer(model, processor, inputs, decoding=SAMPLED, seed=1, with_entropy=True)]
    assert together[0].tokens == 1 < max(one.tokens for one in together)
    first = replace(SAMPLED, max_new_tokens=1)
    alone = answer(model, processor, inputs, decoding=first, seed=1, with_entropy=True)[0][0]
    assert together[0].entropy == pytest.approx(alone.entropy, abs=1e-6)


def test_the_placeholder_of_an_image_is_never_sampled_however_likely(tiny_model):
    model, processor = load_model(str(tiny_model)), AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    likely = sorted(vision_token_ids(model.config))
    assert likely

    def favour(module, args, output):
        output.logits[..., likely] += 1000.0

    hook = model.register_forward_hook(favour)
    ids = record_ids(model, inputs)
    for decoding in (GREEDY, SAMPLED):
        answer(model, processor, inputs, decoding=decoding)
    hook.remove()
    assert not {int(token) for row in ids for token in row} & set(likely)


def test_an_adapter_answers_as_its_merged_model_does(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_model), config)
    adapted.save_pretrained(tmp_path / "adapter")
    processor = AutoProcessor.from_pretrained(tiny_model)
    inputs = tokenize(processor, conversations())
    plain, ours, theirs = (
        [one.entropy for [one] in answer(model, processor, inputs, decoding=GREEDY, with_entropy=True)]
        for model in (
            load_model(str(tiny_model)),
            load_model(str(tmp_path / "adapter")),
            adapted.get_base_model().eval(),
        )
    )
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours != pytest.approx(plain, rel=1e-2)


def test_batches_hold_every_row_once_longest_first():
    assert plan_batches([3, 9, 3, 5, 9], 2) == [[1, 4], [3, 0], [2]]
    assert plan_batches([], 2) == []


def test_prefetching_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda key: key * key, [3, 1, 2])) == [(3, 9), (1, 1), (2, 4)]
    assert list(prefetch(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda key: 1 // key, [1, 0]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens and samples must be >= 1, got 0, 1"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0, got -1.0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"samples": 2}, "samples is 2, all alike at temperature 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Decoding(**{"max_new_tokens": 4, **options})
