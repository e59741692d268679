"""GRPO's advantages worked by hand, and equal to those that TRL computes in a run."""

import math

import pytest
import torch
from support import FAST, dataset_of, uneven_reward

from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.advantages import group_advantages
from vlm_entropy.trainers.rollouts import total_rewards

EXACT = {"rtol": 0, "atol": 1e-12}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_reward_is_centred_on_its_group_and_divided_by_the_sample_standard_deviation():
    # group 1: mean 2, deviations -1 1, sum of squares 2, n - 1 = 1, std sqrt 2. group 2: mean 5, std 0
    expected = tensor(-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 0, 0)
    torch.testing.assert_close(group_advantages(tensor(1, 3, 5, 5), 2), expected, **EXACT)


def test_without_scaling_only_the_mean_is_taken_off():
    torch.testing.assert_close(group_advantages(tensor(1, 3, 5, 9), 2, scale="none"), tensor(-1, 1, -2, 2), **EXACT)


def test_the_batch_standard_deviation_is_that_of_all_rewards():
    # mean 4, deviations -3 -1 1 3, squares 20, / 3
    std = math.sqrt(20 / 3) + 1e-4
    expected = tensor(-1 / std, 1 / std, -1 / std, 1 / std)
    torch.testing.assert_close(group_advantages(tensor(1, 3, 5, 7), 2, scale="batch"), expected, **EXACT)


def test_a_row_outside_the_baseline_is_compared_with_the_others():
    # mean of 0 and 1 is 0.5, the row outside has reward 2
    counted = torch.tensor([True, True, False])
    advantages = group_advantages(tensor(0, 1, 2), 3, scale="none", in_baseline=counted)
    torch.testing.assert_close(advantages, tensor(-0.5, 0.5, 1.5), **EXACT)


def test_a_row_that_nothing_judged_has_no_advantage_and_no_weight():
    torch.testing.assert_close(group_advantages(tensor(1, math.nan, 3), 3, scale="none"), tensor(-1, 0, 1), **EXACT)


def test_a_group_without_a_row_in_the_baseline_has_no_advantages():
    nothing = torch.zeros(2, dtype=torch.bool)
    assert group_advantages(tensor(1, 3), 2, in_baseline=nothing).tolist() == [0, 0]


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="'group', 'batch' or 'none', got 'sum'"):
        group_advantages(tensor(1, 3), 2, scale="sum")


def sometimes(completion_ids, **kwargs):
    """A second reward, which cannot judge every third row."""
    return [None if index % 3 == 0 else float(len(ids)) for index, ids in enumerate(completion_ids)]


def unjudged(completion_ids, **kwargs):
    """A reward that can judge nothing but the first two rows."""
    return [1.0 + index if index < 2 else None for index in range(len(completion_ids))]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("functions", [[uneven_reward, sometimes], [unjudged]])
def test_they_are_those_of_trl(tmp_path, tiny_model, shapes, scale, functions):
    class Compare(EntropyGRPOTrainer):
        def group_advantages(self, rollout, examples, rewards):
            totals = total_rewards(rewards, self.reward_weights)
            ours = self.local_rows(group_advantages(totals, self.num_generations, scale=scale))
            # float32 rewards; TRL's own standard deviation sums in another order
            torch.testing.assert_close(ours, rollout["advantages"], rtol=1e-5, atol=1e-6)
            seen.append(ours.abs().sum().item())
            return super().group_advantages(rollout, examples, rewards)

    seen = []
    args = EntropyGRPOConfig(
        **{**FAST, "per_device_train_batch_size": 8}, output_dir=str(tmp_path), scale_rewards=scale, max_steps=1
    )
    Compare(str(tiny_model), functions, args, train_dataset=dataset_of(shapes, tiny_model)).train()
    assert len(seen) == 1
    assert seen[0] > 0.1
