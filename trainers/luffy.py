"""LUFFY: an expert's response in each group, with more weight on its improbable tokens (arXiv 2504.14945)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Policy
from .mixed_policy import MixedPolicyConfig, MixedPolicyTrainer
from .rollouts import Rollout


def luffy_term(advantages: Tensor, logps: Tensor, *, gamma: float = 0.1) -> Tensor:
    """Loss of the tokens of an expert's response, to be minimised.

    ℓ_it = -A_i · f(π_it),   f(p) = p / (p + γ),   dℓ/dp = -A_i · γ / (p + γ)²

    Source: arXiv 2504.14945, policy shaping; the official code ("p_div_p_0.1") has γ = 0.1. The probability that the
    expert gave its tokens is taken as 1, so that π itself is the ratio; there is no clipping.

    Args:
        advantages: (B,) A, in reward units; detached.
        logps: (B, T) log π of the expert's tokens, nats; gradients flow through, also at -inf.
        gamma: γ > 0, a probability; smaller leaves less weight on probable tokens.

    Returns:
        (B, T), in reward units.
    """
    # p / (p + γ) = σ(log p - log γ)
    return -advantages.detach()[:, None] * torch.sigmoid(logps - math.log(gamma))


@dataclass
class LuffyConfig(MixedPolicyConfig):
    """Options of LUFFY, besides TRL's. Defaults: the port in CalibRL's code, save for TRL's options."""

    luffy_gamma: float = field(
        default=0.1,
        metadata={
            "help": "γ > 0 of f(p) = p / (p + γ), a probability; smaller turns the weight away from the expert's "
            "probable tokens."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.luffy_gamma) and self.luffy_gamma > 0):
            raise ValueError(f"luffy_gamma must be a finite number > 0, got {self.luffy_gamma}.")


class LuffyTrainer(MixedPolicyTrainer):
    """GRPO whose only change is an expert's response in each group, with `luffy_term` for its loss."""

    args: LuffyConfig
    config_class = LuffyConfig
    metric_prefix = "luffy"

    def expert_term(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        return luffy_term(advantages, policy.logps, gamma=self.args.luffy_gamma)
