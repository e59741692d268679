"""The formulas of the entropy baselines: worked by hand, their laws, their gradients, and what options refuse."""

import math

import numpy
import pytest
import torch
from datasets import Dataset

from vlm_entropy.trainers.entropy_advantage import EntropyAdvantageConfig, entropy_advantage
from vlm_entropy.trainers.entropy_minimisation import EntropyMinimisationConfig
from vlm_entropy.trainers.entropy_reward import EntropyRewardConfig, entropy_reward
from vlm_entropy.trainers.intuitor import IntuitorConfig, self_certainty
from vlm_entropy.trainers.label_entropy import LabelEntropyConfig, check_noise_column, label_entropy_loss
from vlm_entropy.trainers.two_stage import TwoStageConfig, entropy_coefficient

EXACT = {"rtol": 0, "atol": 1e-12}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# Entropy Advantage


def test_the_bonus_is_alpha_times_the_entropy_up_to_a_share_of_the_advantage():
    # alpha 0.4: entropy 1 gives 0.4, entropy 5 gives 2. |A| / kappa: 1 for A = 2 and for A = -2, 0 for A = 0
    shaped = entropy_advantage(tensor([2, -2, 0]), tensor([[1, 5], [1, 5], [1, 5]]))
    torch.testing.assert_close(shaped, tensor([[2.4, 3.0], [-1.6, -1.0], [0.0, 0.0]]), **EXACT)


def test_the_bonus_never_turns_the_sign_of_an_advantage():
    advantages = tensor([-3.0, -1e-3, 1e-3, 3.0])
    shaped = entropy_advantage(advantages, tensor([[100.0]] * 4), kappa=1.01)
    assert (shaped.flatten().sign() == advantages.sign()).all()


def test_no_gradient_flows_through_the_bonus():
    entropies = tensor([[1.0]]).requires_grad_()
    assert not entropy_advantage(tensor([1.0]), entropies).requires_grad


def test_advantages_per_token_are_raised_token_by_token():
    shaped = entropy_advantage(tensor([[2, 0]]), tensor([[1, 1]]))
    torch.testing.assert_close(shaped, tensor([[2.4, 0.0]]), **EXACT)


def test_the_bonus_equals_a_loop_over_its_definition():
    # numpy 2, written from psi = min(alpha * H, |A| / kappa)
    rng = numpy.random.default_rng(0)
    advantages, entropies = rng.normal(size=5), rng.exponential(size=(5, 7))
    expected = [[a + min(0.3 * h, abs(a) / 4) for h in row] for a, row in zip(advantages, entropies, strict=True)]
    actual = entropy_advantage(torch.tensor(advantages), torch.tensor(entropies), alpha=0.3, kappa=4)
    numpy.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)


# Entropy Reward


def test_a_reward_gains_the_mean_entropy_of_its_response():
    entropies, mask = tensor([[1, 3, 9], [2, 9, 9]]), tensor([[1, 1, 0], [1, 0, 0]])
    # means 2 and 2, c = 0.1
    torch.testing.assert_close(
        entropy_reward(tensor([1, 0]), entropies, mask, coefficient=0.1), tensor([1.2, 0.2]), **EXACT
    )


def test_an_empty_response_gains_nothing_and_an_unjudged_one_stays_unjudged():
    rewards = entropy_reward(tensor([1, math.nan]), tensor([[5], [5]]), tensor([[0], [1]]), coefficient=0.1)
    assert rewards[0] == 1
    assert rewards[1].isnan()


# Self-certainty


def test_self_certainty_of_two_tokens_is_the_divergence_from_a_fair_coin():
    # p = (3/4, 1/4): -1/2 (log(2 * 3/4) + log(2 * 1/4)) = -1/2 log(3/4)
    assert self_certainty(tensor([3.0, 1.0]).log()).item() == pytest.approx(-0.5 * math.log(0.75), abs=1e-12)


def test_the_uniform_distribution_has_no_self_certainty_and_a_sharper_one_more():
    logits = tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    values = self_certainty(logits)
    assert values[0].item() == pytest.approx(0, abs=1e-12)
    assert values[0] < values[1] < values[2]


def test_self_certainty_is_the_divergence_that_torch_computes():
    # torch.distributions of 2.13: KL(U || p), the other way round than KL(p || U)
    logits = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uniform = torch.distributions.Categorical(logits=torch.zeros_like(logits))
    expected = torch.distributions.kl_divergence(uniform, torch.distributions.Categorical(logits=logits))
    torch.testing.assert_close(self_certainty(logits), expected, **EXACT)


# Labels


def test_rows_to_raise_and_rows_to_lower_count_with_opposite_signs():
    entropies, mask = tensor([[1, 3], [4, 9]]), tensor([[1, 1], [1, 0]])
    # means 2 and 4: -(0.5 / 2) * (2 - 4) = 0.5
    loss = label_entropy_loss(entropies, mask, torch.tensor([True, False]), coefficient=0.5)
    assert loss.item() == pytest.approx(0.5, abs=1e-12)


def test_the_gradient_raises_the_entropy_of_the_rows_to_raise():
    entropies = tensor([[1, 3], [4, 9]]).requires_grad_()
    mask = tensor([[1, 1], [1, 0]])
    label_entropy_loss(entropies, mask, torch.tensor([True, False]), coefficient=0.5).backward()
    # -c / B / len: -1/8 on both tokens of row 1, +1/4 on the one token of row 2
    torch.testing.assert_close(entropies.grad, tensor([[-0.125, -0.125], [0.25, 0.0]]), **EXACT)


def test_a_data_set_without_the_column_or_with_a_hole_in_it_is_refused():
    with pytest.raises(ValueError, match=r"needs the column 'is_noisy'; the data has \['answer'\]"):
        check_noise_column(Dataset.from_dict({"answer": ["a"]}))
    with pytest.raises(ValueError, match="is_noisy of row 2 is None"):
        check_noise_column(Dataset.from_dict({"is_noisy": [True, None]}))


# Order of the stages


def test_the_stages_can_come_in_the_other_order():
    coefficients = [
        entropy_coefficient(step, switch_step=2, lambda_max=0.5, lambda_min=0.25, order="min_then_max")
        for step in (1, 2, 3)
    ]
    assert coefficients == [-0.25, -0.25, 0.5]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (EntropyAdvantageConfig, {"entropy_advantage_alpha": -1.0}, "entropy_advantage_alpha must be .* got -1.0"),
        (EntropyAdvantageConfig, {"entropy_advantage_kappa": 1.0}, "entropy_advantage_kappa must be .* got 1.0"),
        (EntropyRewardConfig, {"entropy_reward_coef": math.nan}, "entropy_reward_coef must be .* got nan"),
        (
            EntropyRewardConfig,
            {"multi_objective_aggregation": "normalize_then_sum"},
            "entropy_reward normalises one sum .*got 'normalize_then_sum'",
        ),
        (IntuitorConfig, {"multi_objective_aggregation": "normalize_then_sum"}, "intuitor normalises one sum"),
        (
            EntropyMinimisationConfig,
            {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
            r"entropy_minimisation needs every optimizer step .* \(2\) must be a multiple .* \(4\)",
        ),
        (EntropyMinimisationConfig, {"entropy_coef": 0.1}, "entropy_minimisation sets the entropy coefficient itself"),
        (LabelEntropyConfig, {"raise_on": "none"}, "raise_on must be one of false, true, got 'none'"),
        (LabelEntropyConfig, {"label_entropy_coef": -0.1}, "label_entropy_coef must be .* got -0.1"),
        (TwoStageConfig, {"entropy_order": "up"}, "entropy_order must be one of .* got 'up'"),
        (TwoStageConfig, {"entropy_norm": "row"}, "entropy_norm must be one of .* got 'row'"),
    ],
)
def test_an_option_out_of_range_is_refused(tmp_path, config, options, message):
    with pytest.raises(ValueError, match=message):
        config(output_dir=str(tmp_path), bf16=False, use_cpu=True, **options)
