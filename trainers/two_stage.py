"""Two-stage entropy-guided GRPO: raise the policy's entropy first, lower it later (arXiv 2511.07738)."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from .aggregation import response_mean
from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .rollouts import Rollout

EntropyNorm = Literal["sequence", "token"]
EntropyOrder = Literal["max_then_min", "min_then_max"]


def entropy_coefficient(
    step: int, *, switch_step: int, lambda_max: float, lambda_min: float, order: EntropyOrder = "max_then_min"
) -> float:
    """Coefficient c of the entropy bonus at an optimizer step; the loss gets -c · (mean entropy).

    c(τ) = +λ_max  for τ ≤ τ_switch   (stage 1, entropy is raised)
    c(τ) = -λ_min  for τ > τ_switch   (stage 2, entropy is lowered)

    order="min_then_max", the paper's ablation, has the two stages in the other order.

    Source: arXiv 2511.07738, Algorithm 1. There λ(τ) multiplies L_entropy, which is minus the mean entropy.

    Args:
        step: optimizer step τ, counted from 1.
        switch_step: last step of stage 1; 0 skips stage 1.
        lambda_max: λ_max ≥ 0, in reward units per nat.
        lambda_min: λ_min ≥ 0, in reward units per nat.
        order: which stage comes first.

    Returns:
        The signed coefficient.
    """
    raises = (step <= switch_step) == (order == "max_then_min")
    return lambda_max if raises else -lambda_min


def mean_entropy(entropies: Tensor, mask: Tensor, *, norm: EntropyNorm = "sequence") -> Tensor:
    """Mean token entropy of a batch of completions.

    norm="sequence":  (1/B) Σ_i (1/len_i) Σ_t m_it · H_it
    norm="token":     Σ_i Σ_t m_it · H_it / Σ_i len_i

    The two agree for equal lengths. Source: arXiv 2511.07738, L_entropy, which is minus the sequence form.

    Args:
        entropies: (B, T) in nats; gradients flow through.
        mask: (B, T) bool or 0/1, true = a real completion token.
        norm: which mean.

    Returns:
        Scalar in nats. A row without a valid token has mean 0 and still counts in the sequence form.

    Raises:
        ValueError: for another norm.
    """
    if norm == "sequence":
        return response_mean(entropies, mask).mean()
    if norm == "token":
        return torch.where(mask.bool(), entropies, 0.0).sum() / mask.sum().clamp(min=1)
    raise ValueError(f"norm must be 'sequence' or 'token', got {norm!r}.")


def token_mean_entropy(policy: Policy) -> Tensor:
    """A micro-batch's part of the mean entropy over all tokens of its optimizer step, in nats.

    The parts of all micro-batches and processes average to `mean_entropy` with norm "token" of the whole step.
    """
    assert policy.tokens_per_microbatch is not None  # `check_steps_inside_rollouts` refuses the only case
    tokens = policy.mask.sum() / policy.tokens_per_microbatch.clamp(min=1)
    return mean_entropy(policy.entropies, policy.mask, norm="token") * tokens


def check_steps_inside_rollouts(config: EntropyGRPOConfig, what: str) -> None:
    """Raise `ValueError` if an optimizer step may span several rollouts, so that its tokens are not known at once."""
    assert config.steps_per_generation is not None  # set by TRL
    if config.steps_per_generation % config.gradient_accumulation_steps:
        raise ValueError(
            f"{what} needs every optimizer step to lie inside one rollout: steps_per_generation "
            f"({config.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
            f"({config.gradient_accumulation_steps})."
        )


@dataclass
class TwoStageConfig(EntropyGRPOConfig):
    """Options of two-stage entropy-guided GRPO, besides TRL's. Defaults: arXiv 2511.07738, Table B.1."""

    lambda_max: float = field(
        default=0.01,
        metadata={
            "help": "Stage 1 coefficient of the mean token entropy, reward units per nat; larger raises entropy more."
        },
    )
    lambda_min: float = field(
        default=0.01,
        metadata={
            "help": "Stage 2 coefficient of the mean token entropy, reward units per nat; larger lowers entropy more."
        },
    )
    switch_step: int | None = field(
        default=None,
        metadata={"help": "Last optimizer step of stage 1, 0 to the run's last step. Excludes `switch_fraction`."},
    )
    switch_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the run's optimizer steps that stage 1 takes, 0 to 1; larger explores longer. "
            "0.8 if `switch_step` is not given either."
        },
    )
    entropy_order: EntropyOrder = field(
        default="max_then_min",
        metadata={"help": "Raise entropy first and lower it later, or the other way round ('min_then_max')."},
    )
    entropy_norm: EntropyNorm = field(
        default="sequence",
        metadata={
            "help": "Mean entropy per response, then over responses ('sequence'), or over all tokens of the optimizer "
            "step ('token'), which lets long responses weigh more."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("lambda_max", "lambda_min"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}.")
        for name, choices in (("entropy_order", get_args(EntropyOrder)), ("entropy_norm", get_args(EntropyNorm))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.switch_step is not None and self.switch_fraction is not None:
            raise ValueError(
                f"Give switch_step or switch_fraction, not both (got {self.switch_step} and {self.switch_fraction})."
            )
        if self.switch_step is not None and self.switch_step < 0:
            raise ValueError(f"switch_step must be an optimizer step >= 0, got {self.switch_step}.")
        if self.switch_fraction is not None and not 0 <= self.switch_fraction <= 1:
            raise ValueError(f"switch_fraction must lie in [0, 1], got {self.switch_fraction}.")
        if self.entropy_coef != 0 or self.use_adaptive_entropy:
            raise ValueError(
                "two_stage sets the entropy coefficient itself: leave entropy_coef at 0 and use_adaptive_entropy off "
                f"(got {self.entropy_coef} and {self.use_adaptive_entropy})."
            )
        if self.entropy_norm == "token":
            check_steps_inside_rollouts(self, "entropy_norm='token'")

    def switch_at(self, total_steps: int) -> int:
        """Last step of stage 1 in a run of `total_steps` optimizer steps."""
        if self.switch_step is not None:
            return self.switch_step
        return round((0.8 if self.switch_fraction is None else self.switch_fraction) * total_steps)

    def check_run(self, total_steps: int) -> None:
        super().check_run(total_steps)
        if self.switch_at(total_steps) > total_steps:
            raise ValueError(f"switch_step {self.switch_step} lies outside the run, which has {total_steps} steps.")


class TwoStageTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is the term -c(τ) · H̄ in the loss, H̄ the mean entropy over the whole optimizer step.

    c(τ) is `entropy_coefficient`, H̄ is `mean_entropy` over the rows or tokens of all micro-batches and processes. The
    optimizer step τ is the same for all micro-batches of an accumulation window, and comes back with a checkpoint.
    """

    args: TwoStageConfig
    config_class = TwoStageConfig

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        step, switch_step = self.state.global_step + 1, self.args.switch_at(self.state.max_steps)
        coefficient = entropy_coefficient(
            step,
            switch_step=switch_step,
            lambda_max=self.args.lambda_max,
            lambda_min=self.args.lambda_min,
            order=self.args.entropy_order,
        )
        by_token = self.args.entropy_norm == "token"
        entropy = token_mean_entropy(policy) if by_token else mean_entropy(policy.entropies, policy.mask)
        self.log_scalar("two_stage/coefficient", coefficient)
        self.log_scalar("two_stage/stage", 1 if step <= switch_step else 2)
        self.log_scalar("two_stage/entropy", entropy)
        return super().extra_loss(policy, rollout) - coefficient * entropy
