"""Entropy Advantage: a bonus on the advantage of uncertain tokens (arXiv 2506.14758)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .advantages import per_token
from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .rollouts import Rollout


def entropy_advantage(advantages: Tensor, entropies: Tensor, *, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """Advantages raised where the policy was uncertain.

    A'_it = A_i + min(α · H_it, |A_i| / κ)

    The bonus is never negative, and with κ > 1 never turns the sign of an advantage; A = 0 stays 0.
    Source: arXiv 2506.14758, ψ of its advantage shaping; α = 0.4 for GRPO, κ = 2.

    Args:
        advantages: (B,) or (B, T).
        entropies: (B, T) in nats; detached.
        alpha: α ≥ 0, reward units per nat; 0 leaves the advantages.
        kappa: κ > 1.

    Returns:
        (B, T).
    """
    advantages = per_token(advantages, entropies)
    return advantages + torch.minimum(alpha * entropies.detach(), advantages.abs() / kappa)


@dataclass
class EntropyAdvantageConfig(EntropyGRPOConfig):
    """Options of Entropy Advantage, besides TRL's. Defaults: arXiv 2506.14758, for GRPO."""

    entropy_advantage_alpha: float = field(
        default=0.4,
        metadata={"help": "Bonus α >= 0 per nat of a token's entropy, in units of the advantage; 0 is GRPO."},
    )
    entropy_advantage_kappa: float = field(
        default=2.0,
        metadata={"help": "The bonus is at most the advantage / κ, κ > 1; larger bounds it more."},
    )

    def __post_init__(self):
        super().__post_init__()
        alpha, kappa = self.entropy_advantage_alpha, self.entropy_advantage_kappa
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"entropy_advantage_alpha must be a finite number >= 0, got {alpha}.")
        if not (math.isfinite(kappa) and kappa > 1):
            raise ValueError(f"entropy_advantage_kappa must be a finite number > 1, got {kappa}.")


class EntropyAdvantageTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is `entropy_advantage`, with the entropies of the policy that is trained."""

    args: EntropyAdvantageConfig
    config_class = EntropyAdvantageConfig

    def shape_advantages(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        advantages = super().shape_advantages(advantages, policy, rollout)
        shaped = entropy_advantage(
            advantages,
            policy.entropies,
            alpha=self.args.entropy_advantage_alpha,
            kappa=self.args.entropy_advantage_kappa,
        )
        bonus = (shaped - per_token(advantages, policy.logps))[policy.mask]
        self.log_ratio("entropy_advantage/bonus", bonus.sum(), bonus.numel())
        return shaped
