"""RL-PLUS: an expert's response in each group, weighed by a balanced ratio and by novelty (arXiv 2508.00222)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Policy
from .mixed_policy import MixedPolicyConfig, MixedPolicyTrainer
from .rollouts import Rollout


def rl_plus_term(advantages: Tensor, logps: Tensor, old_logps: Tensor, *, gamma: float = 0.5) -> Tensor:
    """Loss of the tokens of an expert's response, to be minimised.

    ℓ_it = -A_i · ρ_it · (1 - sg(π_it))^γ,   ρ_it = 2 π_it / (π_old,it + (π_old,it + 1) / 2)

    Source: arXiv 2508.00222 (multiple importance sampling, exploration-based advantage) in the form of its official
    code, where the expert's own policy is estimated as the mean of π_old and 1, and γ = 0.5. There is no clipping.

    Args:
        advantages: (B,) A, in reward units; detached.
        logps: (B, T) log π of the expert's tokens, nats; gradients flow through, also at -inf.
        old_logps: (B, T) log-probs of the policy that sampled the rollout, nats; detached.
        gamma: γ ≥ 0; larger turns the weight away from the expert's probable tokens, 0 leaves the ratio alone.

    Returns:
        (B, T), in reward units.
    """
    old = old_logps.detach().exp()
    ratio = 2 * logps.exp() / (old + 0.5 * (old + 1))
    # 1 - p, not below 0 where rounding takes log p above 0
    novelty = -torch.expm1(logps.detach().clamp(max=0.0))
    return -advantages.detach()[:, None] * ratio * novelty**gamma


@dataclass
class RlPlusConfig(MixedPolicyConfig):
    """Options of RL-PLUS, besides TRL's. Defaults: the port in CalibRL's code, save for TRL's options."""

    rl_plus_gamma: float = field(
        default=0.5,
        metadata={
            "help": "Exponent γ ≥ 0 of the weight (1 - p)^γ of an expert's token; larger turns the weight away from "
            "the expert's probable tokens."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.rl_plus_gamma) and self.rl_plus_gamma >= 0):
            raise ValueError(f"rl_plus_gamma must be a finite number >= 0, got {self.rl_plus_gamma}.")


class RlPlusTrainer(MixedPolicyTrainer):
    """GRPO whose only change is an expert's response in each group, with `rl_plus_term` for its loss.

    π_old is the policy at sampling time. Where TRL keeps no log-probs of it, the two are equal at every loss.
    """

    args: RlPlusConfig
    config_class = RlPlusConfig
    metric_prefix = "rl_plus"

    def expert_term(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        old = rollout.get("old_per_token_logps")
        return rl_plus_term(
            advantages, policy.logps, policy.logps if old is None else old, gamma=self.args.rl_plus_gamma
        )
