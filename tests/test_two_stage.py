"""Two-stage entropy GRPO: the formulas by hand, their laws, and what the options refuse."""

import math

import numpy as np
import pytest
import torch
from trl import GRPOConfig

from vlm_entropy.trainers import TwoStageConfig, TwoStageTrainer, entropy_coefficient, get_method, mean_entropy


def config(tmp_path, **options) -> TwoStageConfig:
    defaults = {"per_device_train_batch_size": 4, "num_generations": 4, "bf16": False, "use_cpu": True}
    return TwoStageConfig(output_dir=str(tmp_path), **{**defaults, **options})


def test_the_sign_changes_after_the_switch_step():
    coefficients = [entropy_coefficient(step, switch_step=3, lambda_max=0.5, lambda_min=0.25) for step in range(1, 6)]
    assert coefficients == [0.5, 0.5, 0.5, -0.25, -0.25]


def test_switch_step_0_only_lowers_and_the_last_step_only_raises():
    steps = range(1, 5)
    assert {entropy_coefficient(s, switch_step=0, lambda_max=1.0, lambda_min=2.0) for s in steps} == {-2.0}
    assert {entropy_coefficient(s, switch_step=4, lambda_max=1.0, lambda_min=2.0) for s in steps} == {1.0}


def test_sequence_and_token_mean_by_hand():
    # Row 1: (1 + 3) / 2 = 2. Row 2: 5 / 1 = 5. Sequence mean (2 + 5) / 2 = 3.5; token mean (1 + 3 + 5) / 3 = 3.
    entropies = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert mean_entropy(entropies, mask).item() == 3.5
    assert mean_entropy(entropies, mask, norm="token").item() == 3.0


def test_an_empty_row_counts_as_zero_in_the_sequence_mean_and_not_at_all_in_the_token_mean():
    entropies = torch.tensor([[2.0, 4.0], [7.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [0, 0]])
    assert mean_entropy(entropies, mask).item() == 1.5  # ((2 + 4) / 2 + 0) / 2
    assert mean_entropy(entropies, mask, norm="token").item() == 3.0
    assert mean_entropy(entropies, torch.zeros(2, 2)).item() == 0.0
    assert mean_entropy(entropies, torch.zeros(2, 2), norm="token").item() == 0.0


@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_masking_equals_deletion_even_of_nan(norm):
    torch.manual_seed(0)
    entropies = torch.rand(3, 5, dtype=torch.float64)
    padded = torch.cat([entropies, torch.full((3, 2), math.nan, dtype=torch.float64)], dim=1)
    mask = torch.cat([torch.ones(3, 5), torch.zeros(3, 2)], dim=1)
    assert mean_entropy(padded, mask, norm=norm).item() == pytest.approx(entropies.mean().item(), rel=0, abs=1e-15)


@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_the_gradient_is_the_weight_of_each_token(norm):
    entropies = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    mean_entropy(entropies, mask, norm=norm).backward()
    # Sequence: 1 / (B · len_i) = 1/4, 1/4 and 1/2. Token: 1 / 3 each.
    expected = [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]] if norm == "sequence" else [[1 / 3, 1 / 3, 0.0], [1 / 3, 0.0, 0.0]]
    torch.testing.assert_close(entropies.grad, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_the_mean_agrees_with_a_loop_in_numpy(norm):
    generator = np.random.default_rng(1)
    entropies, lengths = generator.random((6, 9)), generator.integers(0, 10, size=6)
    mask = np.arange(9) < lengths[:, None]
    rows = [entropies[i, :length] for i, length in enumerate(lengths)]
    if norm == "sequence":
        expected = sum(row.mean() if row.size else 0.0 for row in rows) / 6
    else:
        expected = sum(row.sum() for row in rows) / lengths.sum()
    actual = mean_entropy(torch.from_numpy(entropies), torch.from_numpy(mask), norm=norm).item()
    assert actual == pytest.approx(expected, rel=0, abs=1e-14)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="got 'batch'"):
        mean_entropy(torch.zeros(1, 1), torch.ones(1, 1), norm="batch")


def test_the_defaults_are_the_papers(tmp_path):
    options = config(tmp_path)
    assert (options.lambda_max, options.lambda_min, options.entropy_norm) == (0.01, 0.01, "sequence")
    assert options.switch_at(1000) == 800


def test_the_switch_is_a_step_or_a_fraction_of_the_run(tmp_path):
    assert config(tmp_path, switch_step=7).switch_at(10) == 7
    assert config(tmp_path, switch_fraction=0.5).switch_at(10) == 5
    config(tmp_path, switch_step=10).check_run(10)
    with pytest.raises(ValueError, match="switch_step 11 lies outside the run, which has 10 steps"):
        config(tmp_path, switch_step=11).check_run(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_max": math.nan}, "lambda_max must be a finite number >= 0, got nan"),
        ({"lambda_min": -0.1}, "lambda_min must be a finite number >= 0, got -0.1"),
        ({"lambda_min": math.inf}, "got inf"),
        ({"switch_step": -1}, "got -1"),
        ({"switch_fraction": 1.5}, r"switch_fraction must lie in \[0, 1\], got 1.5"),
        ({"switch_fraction": math.nan}, "got nan"),
        ({"switch_step": 3, "switch_fraction": 0.3}, "not both"),
        ({"entropy_coef": 0.1}, "two_stage sets the entropy coefficient itself"),
        ({"use_adaptive_entropy": True}, "two_stage sets the entropy coefficient itself"),
        (
            {"entropy_norm": "token", "gradient_accumulation_steps": 4, "steps_per_generation": 2},
            r"steps_per_generation \(2\) must be a multiple of gradient_accumulation_steps \(4\)",
        ),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_options_of_another_trainer_are_refused(tmp_path):
    with pytest.raises(TypeError, match="takes args=TwoStageConfig"):
        TwoStageTrainer(model="unused", args=GRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True))


def test_unknown_and_incompatible_methods_are_refused():
    with pytest.raises(
        ValueError,
        match=r"Unknown method .grop.; the methods are adaptive_entropy_bonus, calibrl, .*, two_stage",
    ):
        get_method("grop")
    with pytest.raises(ValueError, match="only GRPO methods compose"):
        get_method("sft+two_stage")
    with pytest.raises(ValueError, match="names a method twice"):
        get_method("two_stage+two_stage")


def test_a_combination_has_the_hooks_and_the_options_of_its_parts():
    method = get_method("grpo+two_stage")
    assert issubclass(method.trainer, TwoStageTrainer)
    assert issubclass(method.config, TwoStageConfig)
    assert method.trainer.config_class is method.config
