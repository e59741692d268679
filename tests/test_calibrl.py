"""CalibRL: the formulas by hand, their laws, the experts' tokens, and what the options refuse."""

import math
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor

from vlm_entropy.data.rows import Row
from vlm_entropy.trainers.aggregation import aggregate, row_normalisers
from vlm_entropy.trainers.calibrl import CalibrlConfig, check_experts, exploration_term, huber, log_prob_gap
from vlm_entropy.trainers.experts import expert_token_ids, group_owners, pad_completions, render_experts

EXACT = {"rtol": 0, "atol": 1e-12}


def config(tmp_path, **options) -> CalibrlConfig:
    defaults = {"per_device_train_batch_size": 4, "num_generations": 4, "bf16": False, "use_cpu": True}
    return CalibrlConfig(output_dir=str(tmp_path), **{"expert_column": "expert", **defaults, **options})


def doubles(*rows, **options):
    return torch.tensor(rows, dtype=torch.float64, **options)


@pytest.fixture(scope="module")
def processor(tiny_model):
    return AutoProcessor.from_pretrained(tiny_model)


# log_prob_gap


def test_a_shorter_expert_counts_as_zero_past_its_end():
    # -1 - -3 = 2, -2 - -1 = -1, and the third token alone: -4 - 0.
    gap = log_prob_gap(doubles([-1, -2, -4]), torch.ones(1, 3), doubles([-3, -1]), torch.ones(1, 2))
    assert gap.tolist() == [[2.0, -1.0, -4.0]]


def test_a_padded_expert_counts_as_zero_past_its_end():
    gap = log_prob_gap(doubles([-1, -2]), torch.ones(1, 2), doubles([-3, -9]), torch.tensor([[1, 0]]))
    assert gap.tolist() == [[2.0, -2.0]]


def test_the_rest_of_a_longer_expert_is_ignored_token_by_token():
    gap = log_prob_gap(doubles([-1, -2]), torch.tensor([[1, 0]]), doubles([-3, -9, -9]), torch.ones(1, 3))
    assert gap.tolist() == [[2.0, 0.0]]


def test_sums_and_means_over_sequences_by_hand():
    logps, expert = doubles([-1, -2, -7], [-1, -1, -1]), doubles([-4, -8], [-2, -2])
    mask, expert_mask = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 1], [1, 0]])
    # Row 1: -3 - -12 = 9; -1.5 - -6 = 4.5. Row 2: -3 - -2 = -1; -1 - -2 = 1.
    assert log_prob_gap(logps, mask, expert, expert_mask, mode="sequence_sum").tolist() == [[9.0], [-1.0]]
    assert log_prob_gap(logps, mask, expert, expert_mask, mode="sequence_mean").tolist() == [[4.5], [1.0]]


@pytest.mark.parametrize("mode", ["token", "sequence_sum", "sequence_mean"])
def test_an_empty_response_has_gap_zero_and_an_empty_expert_counts_as_zero(mode):
    empty, full = torch.zeros(1, 1), torch.ones(1, 1)
    assert log_prob_gap(doubles([-1]), empty, doubles([-3]), full, mode=mode).tolist() == [[0.0]]
    assert log_prob_gap(doubles([-1]), full, doubles([-3]), empty, mode=mode).tolist() == [[-1.0]]


@pytest.mark.parametrize("mode", ["token", "sequence_sum", "sequence_mean"])
def test_masking_equals_deletion_even_of_nan(mode):
    torch.manual_seed(0)
    logps, expert = -torch.rand(3, 5, dtype=torch.float64), -torch.rand(3, 4, dtype=torch.float64)
    nan = torch.full((3, 2), math.nan, dtype=torch.float64)
    mask, expert_mask = (torch.cat([torch.ones(3, n), torch.zeros(3, 2)], dim=1) for n in (5, 4))
    padded = torch.cat([logps, nan], dim=1).requires_grad_()
    gap = log_prob_gap(padded, mask, torch.cat([expert, nan], dim=1), expert_mask, mode=mode)
    deleted = log_prob_gap(logps, torch.ones(3, 5), expert, torch.ones(3, 4), mode=mode)
    torch.testing.assert_close(gap[:, :5], deleted, **EXACT)
    assert not gap[:, 5:].any()
    gap.sum().backward()
    assert padded.grad[:, :5].all()
    assert not padded.grad[:, 5:].any()


@pytest.mark.parametrize("mode", ["token", "sequence_sum", "sequence_mean"])
def test_the_gap_agrees_with_a_loop_in_numpy(mode):
    generator = np.random.default_rng(0)
    logps, expert = -generator.random((6, 9)), -generator.random((6, 7))
    lengths, expert_lengths = generator.integers(1, 10, size=6), generator.integers(0, 8, size=6)
    actual = log_prob_gap(
        torch.from_numpy(logps),
        torch.from_numpy(np.arange(9) < lengths[:, None]),
        torch.from_numpy(expert),
        torch.from_numpy(np.arange(7) < expert_lengths[:, None]),
        mode=mode,
    )
    for i, (n, m) in enumerate(zip(lengths, expert_lengths, strict=True)):
        own, other = logps[i, :n], expert[i, :m]
        if mode == "token":
            wanted = [own[t] - (other[t] if t < m else 0.0) if t < n else 0.0 for t in range(9)]
        elif mode == "sequence_sum":
            wanted = [own.sum() - other.sum()]
        else:
            wanted = [own.mean() - (other.mean() if m else 0.0)]
        assert actual[i].tolist() == pytest.approx(wanted, rel=0, abs=1e-14)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="must be one of token, sequence_sum, sequence_mean, got 'mean'"):
        log_prob_gap(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1), mode="mean")


# exploration_term


@pytest.mark.parametrize(
    ("correct", "gap", "term", "slope"),
    [
        # |A| = 2, slope .25. Minimising goes against the slope: a correct response goes up, a wrong one down.
        (True, -3.0, 6.0, -2.0),  # 2 · 3, below the expert: full force up
        (True, 3.0, -1.5, -0.5),  # 2 · (.25 · -3), above: weak force, still up
        (False, 3.0, 6.0, 2.0),  # 2 · 3, above: full force down
        (False, -3.0, -1.5, 0.5),  # below: weak force, still down
        (True, 0.0, 0.0, -0.5),  # at the expert's level the weak force
    ],
)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_the_truth_table_in_value_and_gradient(correct, gap, term, slope, advantage):
    logps = doubles([-5.0], requires_grad=True)
    delta = log_prob_gap(logps, torch.ones(1, 1), doubles([-5.0 - gap]), torch.ones(1, 1))
    actual = exploration_term(delta, torch.tensor([correct]), doubles(advantage), negative_slope=0.25)
    actual.sum().backward()
    assert (actual.item(), logps.grad.item()) == (term, slope)


def test_neither_the_advantage_nor_the_expert_gets_a_gradient():
    logps, expert = doubles([-2.0], requires_grad=True), doubles([-3.0], requires_grad=True)
    advantages = doubles(2.0, requires_grad=True)
    ones = torch.ones(1, 1)
    exploration_term(log_prob_gap(logps, ones, expert, ones), torch.tensor([True]), advantages).sum().backward()
    assert logps.grad.item() == -1.0  # -.5 · 2
    assert expert.grad is None
    assert advantages.grad is None


def test_each_row_has_its_own_sign_and_weight():
    gap = doubles([1.0, -1.0], [1.0, -1.0], [1.0, -1.0])
    term = exploration_term(gap, torch.tensor([1, 0, 1]), doubles(1.0, -3.0, 0.0))
    assert term.tolist() == [[-0.5, 1.0], [3.0, -1.5], [0.0, 0.0]]


def test_slope_one_is_linear_in_the_gap():
    gap = doubles([2.0], [-2.0])
    term = exploration_term(gap, torch.tensor([1, 1]), doubles(1.0, 1.0), negative_slope=1.0)
    assert term.tolist() == [[-2.0], [2.0]]


@pytest.mark.parametrize(
    ("activation", "above", "below"),
    [
        ("relu", 2.0, 0.0),
        ("sigmoid", 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))),
        ("tanh", (math.e**4 - 1) / (math.e**4 + 1), -(math.e**4 - 1) / (math.e**4 + 1)),
        ("huber", 1.5, 0.0),  # 2 - 1/2
    ],
)
def test_the_activations_of_the_ablation(activation, above, below):
    # Wrong responses: the activation sees the gap itself. Twice, for the sign of a correct one.
    gap = doubles([2.0], [-2.0], [-2.0])
    term = exploration_term(gap, torch.tensor([0, 0, 1]), doubles(1.0, 1.0, 3.0), activation=activation)
    assert term[:, 0].tolist() == pytest.approx([above, below, 3 * above], rel=1e-12)


def test_huber_is_a_parabola_and_then_a_line_with_a_continuous_slope():
    x = doubles(-1.0, 0.0, 0.5, 1.0, 3.0, requires_grad=True)
    y = huber(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 0.125, 0.5, 2.5]
    assert x.grad.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    # independent source: torch 2.13's huber_loss with delta 1 is the same on the positive side
    wanted = torch.nn.functional.huber_loss(x[1:].detach(), torch.zeros(4, dtype=torch.float64), reduction="none")
    torch.testing.assert_close(y[1:].detach(), wanted, **EXACT)


# the normaliser


MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("loss_type", "normalisers"),
    [
        ("grpo", [6.0, 2.0]),  # 2 rows · 3 and 1 tokens
        ("sapo", [6.0, 2.0]),
        ("bnpo", [4.0, 4.0]),  # 3 + 1 tokens
        ("dapo", [5.0, 5.0]),  # given
        ("cispo", [5.0, 5.0]),
        ("vespo", [5.0, 5.0]),
        ("dr_grpo", [16.0, 16.0]),  # 2 rows · 8
        ("luspo", [2.0, 2.0]),
    ],
)
def test_the_normaliser_of_each_loss_type_by_hand(loss_type, normalisers):
    options = {"tokens_per_microbatch": torch.tensor(5.0), "max_completion_length": 8}
    assert row_normalisers(MASK, loss_type=loss_type, **options).tolist() == normalisers


def test_an_unknown_loss_type_is_refused():
    with pytest.raises(ValueError, match="loss_type 'ppo' has no known normaliser"):
        row_normalisers(MASK, loss_type="ppo", tokens_per_microbatch=torch.tensor(1.0), max_completion_length=1)


def test_terms_of_tokens_and_of_sequences_are_divided_alike():
    term = doubles([1.0, 2.0, 3.0], [4.0, math.nan, math.nan])
    # (1 + 2 + 3) / 6 + 4 / 2 = 3, and 6 / 6 + 4 / 2 = 3.
    assert aggregate(term, MASK, torch.tensor([6, 2])).item() == 3.0
    assert aggregate(doubles([6.0], [4.0]), MASK, torch.tensor([6, 2])).item() == 3.0
    # A row without tokens is left out of both.
    assert aggregate(doubles([6.0], [4.0]), MASK * torch.tensor([[1], [0]]), torch.tensor([6, 2])).item() == 1.0


def test_a_sum_over_the_sequence_pushes_each_token_as_hard_as_the_token_form_and_a_mean_len_times_less():
    gradients = {}
    for mode in ("token", "sequence_sum", "sequence_mean"):
        logps = doubles([-1.0, -2.0, -3.0], requires_grad=True)
        mask, expert = torch.ones(1, 3), doubles([-9.0, -9.0, -9.0])
        gap = log_prob_gap(logps, mask, expert, mask, mode=mode)
        term = exploration_term(gap, torch.tensor([False]), doubles(1.0))
        aggregate(term, mask, torch.tensor([3])).backward()
        gradients[mode] = logps.grad[0]
    torch.testing.assert_close(gradients["sequence_sum"], gradients["token"], **EXACT)
    torch.testing.assert_close(gradients["sequence_mean"], gradients["token"] / 3, **EXACT)


# experts


def test_an_expert_is_tokenised_as_a_completion_that_ends_its_turn(processor):
    tokenizer = processor.tokenizer
    plain = expert_token_ids("<answer>[4, 8, 12, 16]</answer>", tokenizer)
    assert tokenizer.decode(plain) == "<answer>[4, 8, 12, 16]</answer><|im_end|>"
    assert plain[-1] == tokenizer.eos_token_id
    assert expert_token_ids("<answer>[4, 8, 12, 16]</answer><|im_end|>", tokenizer) == plain
    # independent source: the assistant's turn of the chat template, up to and with its end
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<answer>[4, 8, 12, 16]</answer>"}]
    prompt = processor.apply_chat_template(turn[:1], add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template(turn, tokenize=False)
    assert tokenizer(whole.removeprefix(prompt))["input_ids"][: len(plain)] == plain


@pytest.mark.parametrize(
    "expert",
    ["red", [{"role": "assistant", "content": "red"}], [{"role": "assistant", "content": [{"type": "text"}]}]],
)
def test_text_and_chat_are_the_same_expert(processor, expert):
    if isinstance(expert, list) and isinstance(expert[0]["content"], list):
        expert[0]["content"][0]["text"] = "red"
    assert expert_token_ids(expert, processor.tokenizer) == expert_token_ids("red", processor.tokenizer)


@pytest.mark.parametrize("expert", [None, "", " \n", [], [{"role": "assistant", "content": ""}]])
def test_a_missing_or_blank_expert_has_no_tokens(processor, expert):
    assert expert_token_ids(expert, processor.tokenizer) == []


@pytest.mark.parametrize("expert", [3, [{"role": "user", "content": "red"}], [{"role": "assistant"}], ["red"]])
def test_anything_else_is_no_expert(processor, expert):
    with pytest.raises(ValueError, match="must be text or a chat of one assistant message"):
        expert_token_ids(expert, processor.tokenizer)


def test_completions_are_padded_on_the_right():
    ids, mask = pad_completions([[5, 6, 7], [8]], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert [tensor.shape for tensor in pad_completions([], pad_id=9)] == [(0, 1), (0, 1)]


def test_rows_of_a_group_share_its_first_local_row():
    assert group_owners(6, 3, offset=0) == [0, 0, 0, 3, 3, 3]
    # Rows 4 to 7 of groups of three: 3 4 5 | 6 7 8.
    assert group_owners(4, 3, offset=4) == [0, 0, 2, 2]
    assert group_owners(2, 8, offset=4) == [0, 0]


def test_a_box_in_an_expert_is_written_as_the_model_would_write_it():
    rows = [Row(f"a.jsonl:{i}", ("x.png",), ((32, 32),), "?", "[4, 8, 12, 16]", {}) for i in range(3)]
    columns = {"image_size": [[32, 32]] * 3, "input_size": [[64, 64]] * 3, "solution_space": ["absolute"] * 3}
    columns["coordinate_space"] = ["absolute_resized"] * 3
    experts = ["<answer>{box}</answer>", None, "red"]
    for row, expert in zip(rows, experts, strict=True):
        row.columns["expert"] = expert
    dataset = Dataset.from_dict({**columns, "expert": experts})
    rendered = render_experts(rows, dataset, column="expert")
    # Qwen2.5-VL counts pixels of its input, twice the file's.
    assert list(rendered["expert"]) == ["<answer>[8, 16, 24, 32]</answer>", None, "red"]
    assert render_experts(rows, rendered, column="none") is rendered


# options


def test_the_defaults_are_those_of_the_papers_code(tmp_path):
    options = config(tmp_path)
    assert (options.exploration_weight, options.negative_slope, options.correct_threshold) == (0.1, 0.5, 0.1)
    assert (options.delta_mode, options.activation, options.baseline) == ("token", "leaky_relu", "expert")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_column": None}, "calibrl needs expert_column"),
        ({"exploration_weight": -1.0}, "exploration_weight must be a finite number >= 0, got -1.0"),
        ({"exploration_weight": math.nan}, "got nan"),
        ({"negative_slope": 1.5}, r"negative_slope must lie in \[0, 1\], got 1.5"),
        ({"negative_slope": math.nan}, "got nan"),
        ({"correct_threshold": math.nan}, "correct_threshold must be a finite number, got nan"),
        ({"activation": "gelu"}, "activation must be one of leaky_relu, relu, sigmoid, tanh, huber, got 'gelu'"),
        ({"delta_mode": "sum"}, "delta_mode must be one of token, sequence_sum, sequence_mean, got 'sum'"),
        ({"long_expert": "skip"}, "long_expert must be one of truncate, refuse, got 'skip'"),
        ({"baseline": "sft"}, "baseline must be one of expert, reference, got 'sft'"),
        ({"activation": "tanh", "negative_slope": 0.3}, "activation='tanh' has no negative_slope"),
        ({"baseline": "reference", "beta": 0.1}, "uses no expert: leave expert_column out"),
        ({"baseline": "reference", "expert_column": None}, "needs beta > 0"),
        ({"top_entropy_quantile": 0.2}, "leave top_entropy_quantile at 1"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold off"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_correctness_is_a_named_reward_or_a_sum_that_the_format_alone_cannot_reach(tmp_path):
    names = ["iou_reward", "format_reward"]
    assert config(tmp_path, correct_reward="iou_reward").correct_column(names) == 0
    assert config(tmp_path, correct_reward="format").correct_column(names) == 1
    assert config(tmp_path, reward_weights=[1.0, 0.1]).correct_column(names) is None
    assert config(tmp_path).correct_column(["iou_reward"]) is None
    with pytest.raises(ValueError, match="'accuracy' is none of the rewards iou_reward, format_reward"):
        config(tmp_path, correct_reward="accuracy").correct_column(names)
    with pytest.raises(ValueError, match=r"a wrong answer can score above correct_threshold 0\.1"):
        config(tmp_path).correct_column(names)
    with pytest.raises(ValueError, match=r"a wrong answer can score above correct_threshold 0\.1"):
        config(tmp_path, reward_weights=[1.0, 0.2]).correct_column(names)


def test_data_without_experts_is_refused_before_a_model_loads(tmp_path, processor):
    data = Dataset.from_dict({"solution": ["red", "blue"], "expert": [None, "red"], "blank": [None, " "]})
    check_experts(config(tmp_path), data, processor, ["iou_reward"])
    with pytest.raises(ValueError, match=r"'experts' is no column of the data, which has .*'blank', 'expert'"):
        check_experts(config(tmp_path, expert_column="experts"), data, processor, ["iou_reward"])
    with pytest.raises(ValueError, match="'blank' is empty in all 2 rows"):
        check_experts(config(tmp_path, expert_column="blank"), data, processor, ["iou_reward"])
    with pytest.raises(ValueError, match="'acc' is none of the rewards"):
        check_experts(config(tmp_path, correct_reward="acc"), data, processor, ["iou_reward"])
    reference = config(tmp_path, baseline="reference", expert_column=None, beta=0.1)
    check_experts(reference, data, processor, ["iou_reward"])


def test_long_experts_are_warned_of_or_refused(tmp_path, processor):
    data = Dataset.from_dict({"expert": ["red", "red blue green", "red blue"]})  # and the end of the turn: 2, 4, 3
    fits = config(tmp_path, max_completion_length=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_experts(fits, data, processor, ["iou_reward"])
    with pytest.warns(
        UserWarning, match="2 of 3 experts are cut to max_completion_length 2; the longest has 4 tokens"
    ):
        check_experts(config(tmp_path, max_completion_length=2), data, processor, ["iou_reward"])
    refuse = config(tmp_path, max_completion_length=2, long_expert="refuse")
    with pytest.raises(ValueError, match=r"The expert of row 2 has 4 tokens, max_completion_length is 2: .*\(2 rows"):
        check_experts(refuse, data, processor, ["iou_reward"])
