"""Entropy Reward: a bonus for uncertain responses, added to their rewards (baseline of arXiv 2512.06726)."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from .advantages import check_one_sum, group_advantages
from .aggregation import response_mean
from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .rollouts import Rollout, total_rewards


def entropy_reward(rewards: Tensor, entropies: Tensor, mask: Tensor, *, coefficient: float) -> Tensor:
    """Rewards with a bonus on the mean token entropy of the response, before they are normalised in their group.

    r'_i = r_i + c · (1/len_i) Σ_t m_it · H_it

    Source: the baseline "Entropy Reward" of arXiv 2512.06726, Table 3, which prints neither formula nor coefficient;
    this is our reading. c < 0 rewards certainty.

    Args:
        rewards: (N,) total rewards.
        entropies: (N, T) of the policy that sampled, in nats; detached.
        mask: (N, T) bool or 0/1, true = a real completion token.
        coefficient: c, reward units per nat.

    Returns:
        (N,).
    """
    return rewards + coefficient * response_mean(entropies.detach(), mask)


@dataclass
class EntropyRewardConfig(EntropyGRPOConfig):
    """Options of Entropy Reward, besides TRL's."""

    entropy_reward_coef: float = field(
        default=0.01,
        metadata={
            "help": "Reward c per nat of a response's mean token entropy; larger rewards uncertainty more, negative "
            "values reward certainty, 0 is GRPO."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_one_sum(self, "entropy_reward")
        if not math.isfinite(self.entropy_reward_coef):
            raise ValueError(f"entropy_reward_coef must be a finite number, got {self.entropy_reward_coef}.")


class EntropyRewardTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is `entropy_reward`: one forward more per rollout, without gradient.

    TRL's own reward metrics are those of the reward functions.
    """

    args: EntropyRewardConfig
    config_class = EntropyRewardConfig

    def group_advantages(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> Tensor:
        policy = self.forward_rollout(rollout)
        totals = self.local_rows(total_rewards(rewards, self.reward_weights.to(rewards.device)))
        coefficient = self.args.entropy_reward_coef
        with_bonus = entropy_reward(totals, policy.entropies, policy.mask, coefficient=coefficient)
        bonus = (with_bonus - totals)[~totals.isnan()]
        self.log_ratio("entropy_reward/bonus", bonus.sum(), bonus.numel())
        gathered = self.accelerator.gather(with_bonus)
        return self.local_rows(group_advantages(gathered, self.num_generations, scale=self.scale_rewards))
