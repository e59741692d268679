"""LUFFY and RL-PLUS: the formulas by hand and by loops, and what the options refuse."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor

from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import Row
from vlm_entropy.trainers.luffy import LuffyConfig, luffy_term
from vlm_entropy.trainers.rl_plus import RlPlusConfig, rl_plus_term

EXACT = {"rtol": 0, "atol": 1e-12}
CONFIGS = [LuffyConfig, RlPlusConfig]


def doubles(*values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def luffy(p, *, advantage=1.0, **options):
    """The term of one response whose tokens have the probabilities `p`."""
    return luffy_term(doubles(advantage), torch.log(p)[None], **options)[0]


def rl_plus(p, old, *, advantage=1.0, **options):
    return rl_plus_term(doubles(advantage), torch.log(p)[None], torch.log(old)[None], **options)[0]


# LUFFY


def test_luffy_by_hand():
    # f = 0.1 / 0.2 = 1/2, 0.5 / 0.6 = 5/6, 1 / 1.1 = 10/11, 0 / 0.1 = 0, times -2.
    term = luffy(doubles(0.1, 0.5, 1.0, 0.0), advantage=2.0)
    torch.testing.assert_close(term, doubles(-1.0, -5 / 3, -20 / 11, 0.0), **EXACT)
    # A negative advantage pushes down: f(0.3) = 0.3 / 0.6 with γ = 0.3.
    torch.testing.assert_close(luffy(doubles(0.3), advantage=-4.0, gamma=0.3), doubles(2.0), **EXACT)


def test_the_gradient_weight_of_luffy_is_gamma_over_p_plus_gamma_squared():
    p = doubles(1e-6, 0.1, 0.5, 1.0, requires_grad=True)
    luffy(p, advantage=-3.0).sum().backward()
    # 3 · 0.1 / (p + 0.1)²: about 30, then 7.5, 0.3 / 0.36, 0.3 / 1.21.
    expected = doubles(0.3 / 0.100001**2, 7.5, 0.3 / 0.36, 0.3 / 1.21)
    torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=0)


def test_luffy_agrees_with_a_loop_over_the_formula_of_the_paper():
    # independent source: arXiv 2504.14945, f(p) = p / (p + γ), in numpy
    rng = np.random.default_rng(0)
    logps, advantages = -rng.exponential(2, (3, 5)), rng.normal(size=3)
    expected = np.empty((3, 5))
    for i in range(3):
        for t in range(5):
            p = np.exp(logps[i, t])
            expected[i, t] = -advantages[i] * p / (p + 0.25)
    actual = luffy_term(torch.tensor(advantages), torch.tensor(logps), gamma=0.25)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


# RL-PLUS


def test_rl_plus_by_hand():
    # ρ = 0.2 / (0.1 + 0.55) = 4/13, 1 / (0.5 + 0.75) = 4/5, 2 / (1 + 1) = 1, 0 / 0.5 = 0;
    # √(1 - p) = √0.9, √0.5, 0, 1; times -2.
    p = doubles(0.1, 0.5, 1.0, 0.0)
    expected = doubles(-8 / 13 * math.sqrt(0.9), -1.6 * math.sqrt(0.5), 0.0, 0.0)
    torch.testing.assert_close(rl_plus(p, p, advantage=2.0), expected, **EXACT)
    # Of an older policy: ρ = 1.5 / (0.2 + 0.6) = 1.875, √0.25 = 0.5; with γ = 2 0.0625 in its place.
    p, old = doubles(0.75), doubles(0.2)
    torch.testing.assert_close(rl_plus(p, old, advantage=2.0), doubles(-1.875), **EXACT)
    torch.testing.assert_close(rl_plus(p, old, gamma=2.0), doubles(-1.875 * 0.0625), **EXACT)
    torch.testing.assert_close(rl_plus(p, old, gamma=0.0), doubles(-1.875), **EXACT)


def test_the_gradient_of_rl_plus_flows_through_the_new_probability_of_the_ratio_alone():
    p, old = doubles(0.75, 0.19, 1.0, requires_grad=True), doubles(0.2, 0.5, 1.0, requires_grad=True)
    rl_plus(p, old, advantage=-1.0).sum().backward()
    # 2 / (0.2 + 0.6) · √0.25, 2 / (0.5 + 0.75) · √0.81, 2 / 2 · 0.
    torch.testing.assert_close(p.grad, doubles(1.25, 1.44, 0.0), **EXACT)
    assert old.grad is None


def test_rl_plus_agrees_with_a_loop_over_the_formula():
    # independent source: arXiv 2508.00222 in the form of its code, ρ = 2p / (p_old + (p_old + 1) / 2), in numpy
    rng = np.random.default_rng(1)
    logps, old, advantages = -rng.exponential(2, (3, 5)), -rng.exponential(2, (3, 5)), rng.normal(size=3)
    expected = np.empty((3, 5))
    for i in range(3):
        for t in range(5):
            p, p_old = np.exp(logps[i, t]), np.exp(old[i, t])
            expected[i, t] = -advantages[i] * 2 * p / (p_old + 0.5 * (p_old + 1)) * np.sqrt(1 - p)
    actual = rl_plus_term(torch.tensor(advantages), torch.tensor(logps), torch.tensor(old))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


# both


TERMS = [luffy_term, lambda advantages, logps: rl_plus_term(advantages, logps, logps)]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_impossible_and_certain_tokens_have_finite_terms_and_gradients(term, dtype):
    logps = torch.tensor([[-math.inf, -1e4, -1e-9, 0.0, 1e-6]], dtype=dtype, requires_grad=True)
    loss = term(torch.ones(1, dtype=dtype), logps)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logps.grad.isfinite().all()
    assert (loss[0, :2].tolist(), logps.grad[0, :2].tolist()) == ([0, 0], [0, 0])


@pytest.mark.parametrize("term", TERMS)
def test_rows_without_advantage_have_no_term_and_advantages_get_no_gradient(term):
    advantages = doubles(0.0, 1.0, requires_grad=True)
    logps = doubles([-1.0, -2.0], [-1.0, -2.0], requires_grad=True)
    loss = term(advantages, logps)
    loss.sum().backward()
    assert not loss[0].any()
    assert not logps.grad[0].any()
    assert loss[1].all()
    assert logps.grad[1].all()
    assert advantages.grad is None


# options


def config(tmp_path, config_class=LuffyConfig, **options):
    defaults = {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "bf16": False,
        "use_cpu": True,
        "expert_column": "expert",
        "scale_rewards": "none",
    }
    return config_class(output_dir=str(tmp_path), **{**defaults, **options})


def test_the_defaults_are_those_of_the_port(tmp_path):
    assert (config(tmp_path).luffy_gamma, config(tmp_path).expert_baseline) == (0.1, "on_policy")
    options = config(tmp_path, RlPlusConfig)
    assert (options.rl_plus_gamma, options.expert_baseline, options.long_expert) == (0.5, "on_policy", "truncate")


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_column": None}, "Mixed groups need expert_column"),
        ({"expert_baseline": "all"}, "expert_baseline must be one of on_policy, union, got 'all'"),
        ({"scale_rewards": "group"}, r"needs scale_rewards='none': .* \(got 'group'\)"),
        ({"scale_rewards": "batch"}, r"needs scale_rewards='none': .* \(got 'batch'\)"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "normalises one sum of rewards"),
        ({"long_expert": "skip"}, "long_expert must be one of truncate, refuse, got 'skip'"),
        ({"max_completion_length": None}, "max_completion_length, which must be a number, got None"),
        ({"importance_sampling_level": "sequence"}, "leave importance_sampling_level at 'token'"),
        ({"top_entropy_quantile": 0.2}, "leave top_entropy_quantile at 1"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold off"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, config_class, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, config_class, **options)


def test_half_a_group_on_a_process_is_refused(tmp_path, monkeypatch):
    # Two processes hold two rows each of a group of four, which TRL accepts.
    monkeypatch.setattr(LuffyConfig, "world_size", 2)
    with pytest.raises(ValueError, match=r"whole groups: .* \(2\) must be a multiple of num_generations \(4\)"):
        config(tmp_path, per_device_train_batch_size=2)


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_gamma_of_luffy_is_above_zero(tmp_path, value):
    with pytest.raises(ValueError, match=f"luffy_gamma must be a finite number > 0, got {value}"):
        config(tmp_path, luffy_gamma=value)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_gamma_of_rl_plus_is_not_negative(tmp_path, value):
    with pytest.raises(ValueError, match=f"rl_plus_gamma must be a finite number >= 0, got {value}"):
        config(tmp_path, RlPlusConfig, rl_plus_gamma=value)
    assert config(tmp_path, RlPlusConfig, rl_plus_gamma=0.0).rl_plus_gamma == 0


def test_the_union_takes_every_scale(tmp_path):
    for scale in ("group", "batch", "none"):
        options = {"scale_rewards": scale, "multi_objective_aggregation": "normalize_then_sum"}
        assert config(tmp_path, expert_baseline="union", **options).scale_rewards == scale


@pytest.mark.parametrize("config_class", CONFIGS)
def test_experts_are_rendered_and_checked_before_a_model_loads(tmp_path, tiny_model, config_class):
    processor = AutoProcessor.from_pretrained(tiny_model)
    rows = [Row(f"a.jsonl:{i}", ("x.png",), ((32, 32),), "?", "[4, 8, 12, 16]", {}) for i in range(2)]
    for row, expert in zip(rows, ["<answer>{box}</answer>", None], strict=True):
        row.columns["expert"] = expert
    columns = {"image_size": [[32, 32]] * 2, "input_size": [[64, 64]] * 2, "solution_space": ["absolute"] * 2}
    columns["coordinate_space"] = ["absolute_resized"] * 2
    dataset = Dataset.from_dict({**columns, "expert": ["<answer>{box}</answer>", None], "blank": [None, " "]})
    arguments = {"family": FAMILIES["qwen2_5_vl"], "processor": processor, "reward_names": ["iou_reward"]}
    rendered = config(tmp_path, config_class).prepare_dataset(rows, dataset, **arguments)
    # Qwen2.5-VL counts pixels of its input, twice the file's.
    assert list(rendered["expert"]) == ["<answer>[8, 16, 24, 32]</answer>", None]
    with pytest.raises(ValueError, match="'blank' is empty in all 2 rows"):
        config(tmp_path, config_class, expert_column="blank").prepare_dataset(rows, dataset, **arguments)
    with pytest.raises(ValueError, match="max_completion_length is 2"):
        config(tmp_path, config_class, max_completion_length=2, long_expert="refuse").prepare_dataset(
            rows, dataset, **arguments
        )
