"""A forward over shared prompts gives each row what a forward of that row alone gives, and takes each prompt once."""

from itertools import groupby

import pytest
import torch
from sharing import (
    EVERY_FAMILY,
    PROMPTS,
    TWO_FAMILIES,
    Counted,
    alone,
    batch_of,
    family,
    load,
    relative_difference,
    row_by_row,
    trl_rows,
)
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import split_pixel_values_by_grid

from vlm_entropy.trainers.shared_attention import Layout, build_layout, shared_prompt_attention
from vlm_entropy.trainers.shared_forward import Groups, Rows, group_rows, pack, prepare_to_share, why_not_shared

LENGTHS = [1, 7, 3, 2, 5, 4, 1, 6, 0, 2, 7, 1, 3, 0, 1, 5]
"""Completions of 16 rows: of one token, of all seven, and two rows that are masked altogether."""


def shared_rows(network, rows, groups=None, *, change=None):
    packed = pack(network, rows, group_rows(rows) if groups is None else groups)
    inputs = packed.inputs if change is None else change(packed.inputs)
    output = network(**inputs, fused_lm_head=True)
    return tuple(packed.rows(values, rows.completion_length) for values in (output.log_probs, output.entropy))


def objective(logps, entropies):
    """A sum in which no two tokens have the same weight."""
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    return (weights * logps).sum() + 0.3 * (weights.flip(0, 1) * entropies).sum()


def gradients(network, forward, batch):
    """Log-probs, entropies, and gradients of every weight and of the pixels of each prompt."""
    rows = batch.rows
    pixels = rows.fields["pixel_values"].clone().requires_grad_()
    values = forward(network, rows._replace(fields={**rows.fields, "pixel_values": pixels}))
    network.zero_grad()
    objective(*values).backward()
    found = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    by_row = split_pixel_values_by_grid({**rows.fields, "pixel_values": pixels.grad})["pixel_values"]
    for prompt in (0, 1, 2):  # the rows of a prompt are made from the same picture
        found[f"pixels of {prompt}"] = sum(part for part, number in zip(by_row, batch.prompts) if number == prompt)
    return *(value.detach() for value in values), found


# -- exact -------------------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_every_row_gets_the_values_and_gradients_of_a_forward_of_its_own(model_type):
    compare_with_rows_alone(model_type, load(family(model_type), share=True))


@TWO_FAMILIES
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_none_of_it(model_type, use_reentrant):
    network = load(family(model_type), share=True)
    network.train()
    network.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    network.enable_input_require_grads()
    counted = Counted(network)
    compare_with_rows_alone(model_type, network)
    assert counted.attended == 2 * counted.tokens  # in the forward and again in the backward


def compare_with_rows_alone(model_type, network):
    batch, reference = batch_of(family(model_type), lengths=LENGTHS), load(family(model_type), share=False)
    logps, entropies, actual = gradients(network, shared_rows, batch)
    expected_logps, expected_entropies, expected = gradients(reference, row_by_row, batch)
    # Logits are of size 15, log-probs of up to 40 nats: float32 rounds them by 1e-6.
    assert relative_difference(logps, expected_logps) < 1e-6
    assert relative_difference(entropies, expected_entropies) < 1e-5
    assert expected_logps.abs().max() > 10
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        if gradient.norm() > 1e-6 * largest:  # a key's bias has none: adding to all keys changes no softmax
            assert (actual[name] - gradient).norm() / gradient.norm() < 1e-5, name
    assert all(expected[f"pixels of {prompt}"].abs().max() > 0 for prompt in (0, 1, 2))


@EVERY_FAMILY
def test_rows_of_one_length_need_no_mask_and_no_padding(model_type):
    rows = batch_of(family(model_type), prompts=[0, 1, 0, 0, 1]).rows
    network, reference = load(family(model_type), share=True), load(family(model_type), share=False)
    packed = pack(network, rows, group_rows(rows))
    assert packed.inputs["shared_prompt"].prompt_mask is None
    for actual, expected in zip(shared_rows(network, rows), row_by_row(reference, rows), strict=True):
        assert relative_difference(actual, expected) < 1e-5


@EVERY_FAMILY
def test_prompts_of_text_alone_are_shared(model_type):
    rows = batch_of(family(model_type), prompts=[3, 3, 3]).rows
    network, reference = load(family(model_type), share=True), load(family(model_type), share=False)
    assert group_rows(rows) == Groups([0], [0, 0, 0])
    assert "pixel_values" not in rows.fields
    for actual, expected in zip(shared_rows(network, rows), row_by_row(reference, rows), strict=True):
        assert relative_difference(actual, expected) < 1e-5


@EVERY_FAMILY
def test_bfloat16_rounds_a_shared_forward_no_more_than_one_row_by_row(model_type):
    folder = family(model_type)
    rows = batch_of(folder, lengths=LENGTHS).rows
    pixels = rows.fields["pixel_values"].bfloat16()
    rounded = rows._replace(fields={**rows.fields, "pixel_values": pixels})
    with torch.no_grad():
        exact = row_by_row(load(folder, share=False), rows)
        shared = shared_rows(load(folder, share=True, dtype=torch.bfloat16), rounded)
        apart = trl_rows(load(folder, share=False, dtype=torch.bfloat16), rounded)
    for ours, trl, values in zip(shared, apart, exact, strict=True):
        error, usual = ((other.float() - values).abs().mean().item() for other in (ours, trl))
        assert 1e-3 < usual < 0.5
        assert error < 1.25 * usual


def test_a_forward_without_a_layout_is_plain_sdpa():
    rows = batch_of(family("qwen2_5_vl")).rows
    prepared, plain = (load(family("qwen2_5_vl"), share=share) for share in (True, False))
    for actual, expected in zip(trl_rows(prepared, rows), trl_rows(plain, rows), strict=True):
        assert torch.equal(actual, expected)


# -- counted -----------------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_a_forward_takes_each_prompt_and_each_of_its_images_once(model_type):
    copies, longest = 8, 5
    rows = batch_of(family(model_type), prompts=[0, 1] * copies, lengths=[longest] * 16, longest=longest).rows
    network = load(family(model_type), share=True)
    counted = Counted(network)
    shared_rows(network, rows)
    trl_rows(network, rows)
    prompts, width = 2, rows.prompt_width
    ours, trl = counted.tokens
    assert ours == prompts * (width - 1 + copies * longest)
    assert trl == prompts * copies * (width + longest)
    # A picture of 32 pixels has 4 x 4 patches of 8, or is a tile of 32.
    assert counted.patches[0] == prompts * (1 if model_type == "internvl" else 16)
    assert counted.patches[1] == copies * counted.patches[0]


def test_padding_that_no_row_of_a_forward_needs_is_left_out():
    # The batch is padded to the prompt with two images and to 7 tokens; these rows have the shortest prompt and 3.
    whole = batch_of(family("qwen2_5_vl"), lengths=[3, 3, 3, 3] * 4)
    rows = whole.rows.chunks(16)[0]
    short = [row for row, prompt in enumerate(whole.prompts) if prompt == 3]
    some = Rows(rows.input_ids[short], rows.attention_mask[short], rows.completion_length, {})
    counted = Counted(network := load(family("qwen2_5_vl"), share=True))
    logps, _ = shared_rows(network, some)
    length = int(some.attention_mask[0, : some.prompt_width].sum())
    assert length < some.prompt_width
    assert counted.tokens == [length - 1 + 4 * 3]
    assert logps.shape == (4, 7)
    assert not logps[:, 3:].any()


# -- groups ------------------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_rows_are_grouped_by_tokens_and_pixels_wherever_they_stand(model_type):
    order = [3, 0, 1, 2, 0, 3, 2, 1, 0]
    rows = batch_of(family(model_type), prompts=order).rows
    same_text = rows.input_ids[1, : rows.prompt_width].equal(rows.input_ids[2, : rows.prompt_width])
    assert same_text  # of different pictures
    assert group_rows(rows) == Groups([0, 1, 2, 3], [0, 1, 2, 3, 1, 0, 3, 2, 1])


@EVERY_FAMILY
def test_one_pixel_parts_two_rows(model_type):
    rows = batch_of(family(model_type), prompts=[0, 0]).rows
    assert group_rows(rows) == Groups([0], [0, 0])
    rows.fields["pixel_values"].view(-1)[-1] += 1e-3
    assert group_rows(rows) == Groups([0, 1], [0, 1])


@EVERY_FAMILY
def test_parts_of_a_batch_share_inside_themselves(model_type):
    # TRL's forwards without gradient run in parts of a few rows: groups of 4 are cut into 3 + 1, 2 + 2, 1 + 3.
    rows = batch_of(family(model_type), prompts=[0] * 4 + [2] * 4 + [3] * 4).rows
    parts = rows.chunks(3)
    assert [group_rows(part).owner for part in parts] == [[0, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]]
    network, reference = load(family(model_type), share=True), load(family(model_type), share=False)
    with torch.no_grad():
        logps = torch.cat([shared_rows(network, part)[0] for part in parts[:3]])
        expected = row_by_row(reference, rows)[0][:9]
    assert relative_difference(logps, expected) < 1e-6


def test_what_cannot_be_shared_stays_row_by_row():
    rows = batch_of(family("qwen2_5_vl"), prompts=[0, 0]).rows
    apart = Groups([0, 1], [0, 1])
    assert group_rows(rows).share
    start = rows.prompt_width
    # the last token of a prompt, or a completion, is part of an image
    for column in (start - 1, start + 1):
        types = rows.fields["mm_token_type_ids"].clone()
        types[1, column] = 1
        assert group_rows(rows._replace(fields={**rows.fields, "mm_token_type_ids": types})) == apart
    # types of another family, whose attention depends on them
    assert group_rows(rows._replace(fields={**rows.fields, "token_type_ids": torch.zeros(2, 9)})) == apart
    # a prompt of a single token leaves nothing to share
    text = Rows(torch.tensor([[0, 7, 8], [0, 7, 9]]), torch.tensor([[0, 1, 1], [0, 1, 1]]), 1, {})
    assert group_rows(text) == apart
    assert group_rows(text._replace(attention_mask=torch.ones(2, 3, dtype=torch.long))).share


# -- wrong ones are seen -----------------------------------------------------------------------------------------


def shifted(inputs):
    """Completions one position too far from their prompt."""
    positions = inputs["position_ids"].clone()
    positions[..., inputs["shared_prompt"].prompts[0] * inputs["shared_prompt"].prompts[1] :] += 1
    return {**inputs, "position_ids": positions}


def leaking(inputs):
    """Completions that see the prompt of the next row's group."""
    layout = inputs["shared_prompt"]
    return {**inputs, "shared_prompt": layout._replace(owner=layout.owner.roll(1))}


def unmasked(inputs):
    """Completions that see their own future."""
    layout = inputs["shared_prompt"]
    everything = torch.ones_like(layout.completion_mask)
    return {**inputs, "shared_prompt": layout._replace(completion_mask=everything)}


def swapped(inputs):
    """The pictures of the two prompts of equal text exchanged."""
    sizes = inputs["image_grid_thw"].prod(dim=1).tolist() if "image_grid_thw" in inputs else [1, 1]
    first, second, *others = inputs["pixel_values"].split([*sizes[:2], len(inputs["pixel_values"]) - sum(sizes[:2])])
    return {**inputs, "pixel_values": torch.cat([second, first, *others])}


def without_last_prompt_token(inputs):
    """The first token of each completion predicted from a padding token in the place of the prompt's last one."""
    layout, ids = inputs["shared_prompt"], inputs["input_ids"].clone()
    count, length = layout.prompts
    width = layout.completion_mask.size(2)
    ids[:, count * length :: width] = 0
    return {**inputs, "input_ids": ids}


@TWO_FAMILIES
@pytest.mark.parametrize("wrong", [shifted, leaking, unmasked, swapped, without_last_prompt_token])
def test_a_wrong_forward_is_far_from_the_right_one(model_type, wrong):
    rows = batch_of(family(model_type)).rows
    network, reference = load(family(model_type), share=True), load(family(model_type), share=False)
    with torch.no_grad():
        expected = row_by_row(reference, rows)[0]
        assert relative_difference(shared_rows(network, rows)[0], expected) < 1e-6
        actual = shared_rows(network, rows, change=wrong)[0]
    # What rounding gives is 1e-6 nats, what `PromptSharing` calls an error 1e-4 on average.
    assert (actual - expected).abs().mean() > 1e-2
    assert (actual - expected).abs().max() > 0.1


# -- attention ---------------------------------------------------------------------------------------------------


def test_a_layout_written_out():
    owner = torch.tensor([1, 0, 1])
    layout = build_layout(owner, torch.tensor([[False, True], [True, True]]), 2)
    assert layout.prompts == (2, 2)
    # rows are queries: the padding of prompt 0 sees itself alone, and nobody sees it
    assert layout.prompt_mask[:, 0].int().tolist() == [[[1, 0], [0, 1]], [[1, 0], [1, 1]]]
    assert layout.completion_mask[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[0, 1, 1, 0], [0, 1, 1, 1]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
    ]
    unpadded = build_layout(owner, torch.ones(2, 2, dtype=torch.bool), 2)
    assert unpadded.prompt_mask is None
    assert unpadded.completion_mask.int().tolist() == [[[[1, 1, 1, 0], [1, 1, 1, 1]]]]


def sees(query, key):
    """Whether a token (prompt, row, place) attends to another: of its prompt or of itself, and not later."""
    same_prompt, own = key[0] == query[0], key[1] in (None, query[1])
    return same_prompt and own and key[2] <= query[2]


def test_attention_of_packed_tokens_is_a_softmax_over_what_each_may_see():
    owner, count, length, width, heads, size = [1, 0, 1], 2, 3, 2, 2, 4
    tokens = [(prompt, None, place) for prompt in range(count) for place in range(length)]
    tokens += [(prompt, row, length + place) for row, prompt in enumerate(owner) for place in range(width)]
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, heads, len(tokens), size, generator=generator, dtype=torch.float64)
    layout = build_layout(torch.tensor(owner), torch.ones(count, length, dtype=torch.bool), width)
    module = torch.nn.Module()
    module.is_causal = True
    actual, _ = shared_prompt_attention(module, query, key, value, None, shared_prompt=layout, scaling=0.5)
    allowed = torch.tensor([[sees(one, other) for other in tokens] for one in tokens])
    scores = (0.5 * query @ key.transpose(2, 3)).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(actual, (scores.softmax(dim=3) @ value).transpose(1, 2), rtol=0, atol=1e-14)


# -- models ------------------------------------------------------------------------------------------------------


def text_model(model_type, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1}
    config = AutoConfig.for_model(model_type, **{**sizes, **options})
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("model_type", "options", "sentence"),
    [
        ("qwen2", {}, None),
        ("llama", {}, None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "the model has layers of sliding_attention"),
        ("mistral", {"sliding_window": 4096}, "the model's attention slides over 4096 tokens"),
        ("qwen3_next", {"num_experts": 0}, "the model has layers of linear_attention"),
        ("mixtral", {"num_local_experts": 2, "sliding_window": None}, "the model is a mixture of experts"),
        ("qwen3_moe", {"num_experts": 2, "moe_intermediate_size": 8}, "the model is a mixture of experts"),
        ("gpt2", {"n_embd": 32, "n_head": 2, "n_layer": 1}, "the model's positions are not rotary"),
    ],
)
def test_only_models_whose_sharing_is_exact_share(model_type, options, sentence):
    assert why_not_shared(text_model(model_type, **options)) == sentence


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_other_than_sdpa_does_not_share(attention):
    network = text_model("qwen2")
    network.set_attn_implementation(attention)
    assert why_not_shared(network) == f"attention is '{attention}', and only 'sdpa' is known to be exact"


@EVERY_FAMILY
def test_the_vision_tower_keeps_its_own_attention_and_a_checkpoint_names_none(model_type, tmp_path):
    network = load(family(model_type), share=False)
    assert why_not_shared(network) is None
    before = network.config.vision_config._attn_implementation
    prepare_to_share(network)
    assert network.config.vision_config._attn_implementation == before == "sdpa"
    assert network.config.get_text_config()._attn_implementation == "sdpa_shared_prompt"
    network.save_pretrained(tmp_path)
    assert "shared_prompt" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_the_rows_of_the_tests_are_of_all_kinds():
    batch = batch_of(family("qwen2_5_vl"), lengths=LENGTHS)
    assert {len(images) for images, _ in PROMPTS} == {0, 1, 2}
    assert all(len(list(run)) == 1 for _, run in groupby(batch.prompts))
    ids, start, fields = alone(batch.rows, 3)
    assert (start, ids.size(1)) == (ids.size(1) - LENGTHS[3], ids.numel())
    assert sorted(fields) == ["mm_token_type_ids"]
    assert isinstance(
        pack(load(family("qwen2_5_vl"), share=True), batch.rows, group_rows(batch.rows)).inputs["shared_prompt"],
        Layout,
    )
