"""GRPO's advantages, for methods that change the rewards or the baseline of a group after scoring."""

import torch
from torch import Tensor
from trl import GRPOConfig


def group_advantages(
    rewards: Tensor, num_generations: int, *, scale: str = "group", in_baseline: Tensor | None = None
) -> Tensor:
    """Rewards centred on the mean of their group, and scaled.

    A_i = (r_i - μ_g) / (σ + 1e-4)     scale="group": σ of the rewards of the group, "batch": of all rewards
    A_i =  r_i - μ_g                   scale="none"

    σ has Bessel's correction (n - 1), as in TRL 1.16, whose advantages these are for rewards that are its own.
    Source: arXiv 2402.03300, section 4.1.2; scale="none": arXiv 2503.20783.

    Args:
        rewards: (N,) total rewards of the rows of all processes, groups together; NaN for a row that no reward judged.
        num_generations: G, N a multiple of it.
        scale: "group", "batch" or "none", what to divide by.
        in_baseline: (N,) bool, rows that count in μ and σ; all by default.

    Returns:
        (N,), 0 for a NaN reward, and in a group without a row that counts; with one such row σ is 0.

    Raises:
        ValueError: for another scale.
    """
    counted = rewards if in_baseline is None else rewards.masked_fill(~in_baseline, torch.nan)
    grouped = counted.view(-1, num_generations)
    advantages = (rewards.view(-1, num_generations) - grouped.nanmean(dim=1, keepdim=True)).flatten()
    if scale == "group":
        advantages = advantages / (_std(grouped).repeat_interleave(num_generations) + 1e-4)
    elif scale == "batch":
        advantages = advantages / (_std(counted.view(1, -1)) + 1e-4)
    elif scale != "none":
        raise ValueError(f"scale must be 'group', 'batch' or 'none', got {scale!r}.")
    return advantages.nan_to_num(nan=0.0)


def per_token(advantages: Tensor, logps: Tensor) -> Tensor:
    """Advantages (B,) or (B, T) as (B, T) like `logps`, detached."""
    advantages = advantages.detach()
    return (advantages[:, None] if advantages.dim() == 1 else advantages).expand_as(logps)


def _std(values: Tensor) -> Tensor:
    """(R,) standard deviations of the rows of (R, C) values that are not NaN, with Bessel's correction."""
    counts = (~values.isnan()).sum(dim=1)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    return (squares / (counts - 1).clamp(min=1)).sqrt()


def check_one_sum(config: GRPOConfig, method: str) -> None:
    """Raise `ValueError` unless rewards are added up before they are normalised."""
    if config.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"{method} normalises one sum of rewards: leave multi_objective_aggregation at 'sum_then_normalize' (got "
            f"{config.multi_objective_aggregation!r})."
        )
