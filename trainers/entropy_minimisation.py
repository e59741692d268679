"""Entropy minimisation without any reward, as in one-shot entropy minimisation (arXiv 2505.20282)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .rollouts import Rollout
from .two_stage import check_steps_inside_rollouts, token_mean_entropy


@dataclass
class EntropyMinimisationConfig(EntropyGRPOConfig):
    """Options of entropy minimisation: TRL's. The paper trains on one prompt, for 10 steps."""

    def __post_init__(self):
        super().__post_init__()
        check_steps_inside_rollouts(self, "entropy_minimisation")
        if self.entropy_coef != 0 or self.use_adaptive_entropy:
            raise ValueError(
                "entropy_minimisation sets the entropy coefficient itself: leave entropy_coef at 0 and "
                f"use_adaptive_entropy off (got {self.entropy_coef} and {self.use_adaptive_entropy})."
            )


class EntropyMinimisationTrainer(EntropyGRPOTrainer):
    """Lowers the mean token entropy of sampled answers: L = Σ_i Σ_t m_it · H_it / Σ_i len_i, and no policy loss.

    The mean runs over all tokens of the optimizer step. Rewards are logged and train nothing; a KL term (beta > 0)
    stays. Source: arXiv 2505.20282, section 3.1.
    """

    args: EntropyMinimisationConfig
    config_class = EntropyMinimisationConfig

    def shape_advantages(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        return torch.zeros_like(super().shape_advantages(advantages, policy, rollout))

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        entropy = token_mean_entropy(policy)
        self.log_scalar("entropy_minimisation/entropy", entropy)
        return super().extra_loss(policy, rollout) + entropy
