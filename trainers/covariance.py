"""Covariance of a token's log-prob and advantage, which KL-Cov and Clip-Cov select tokens by (arXiv 2505.22617)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from .base import EntropyGRPOConfig
from .rollouts import Rollout, loss_mask
from .two_stage import check_steps_inside_rollouts

RATIO_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Loss types of TRL whose token loss is PPO's, -A · ratio where nothing is clipped."""


def token_sums(advantages: Tensor, logps: Tensor, mask: Tensor) -> Tensor:
    """Σ A, Σ log π and the number n of the real tokens, whose quotients are the means of `covariance`.

    Those of several micro-batches or processes add up to those of all their tokens.

    Args:
        advantages, logps, mask: as for `covariance`.

    Returns:
        (3,), detached.

    Raises:
        ValueError: for advantages of another shape.
    """
    valid = mask.bool()
    per_token = _per_token(advantages, logps)
    sums = [torch.where(valid, values, 0.0).sum() for values in (per_token, logps.detach())]
    return torch.stack([*sums, valid.sum().to(sums[1])])


def covariance(advantages: Tensor, logps: Tensor, mask: Tensor, *, sums: Tensor | None = None) -> Tensor:
    """Each token's part of the covariance of advantage and log-prob; a step on a token with a high one lowers entropy.

    Cov_it = (A_i - mean A) · (log π_it - mean log π)

    Both means run over tokens, so that a response weighs by its length. Source: arXiv 2505.22617, Eq. 10; the mean of
    Cov_it is the covariance of its Theorem 2.

    Args:
        advantages: (B,) advantages as sampled, the same for all tokens of a response.
        logps: (B, T) log-probs of the sampled tokens in nats.
        mask: (B, T) bool or 0/1, true = a real completion token.
        sums: (3,) `token_sums` of the tokens that the means run over; those of the arguments by default.

    Returns:
        (B, T) in nats times the unit of the advantage, detached; 0 where the mask is false.

    Raises:
        ValueError: for advantages of another shape.
    """
    sums = token_sums(advantages, logps, mask) if sums is None else sums
    mean_advantage, mean_logp = sums[:2] / sums[2]
    product = (_per_token(advantages, logps) - mean_advantage) * (logps.detach() - mean_logp)
    return torch.where(mask.bool(), product, 0.0)


def token_count(total: int, per_10000: float) -> int:
    """How many of `total` tokens `per_10000` in 10 000 are: rounded down, at least one, as in the authors' code."""
    return max(1, int(total * per_10000 / 10_000))


class UpdateCovariances(NamedTuple):
    """Covariances of all real tokens of an optimizer step, ordered by process, micro-batch, row and position."""

    values: Tensor
    """(n,) of all processes, the same on each."""
    start: int
    """Place of this process's first token."""
    masks: list[Tensor]
    """(B, T) bool of each micro-batch of this process, true = a real completion token."""

    def to_microbatches(self, is_selected: Tensor) -> list[Tensor]:
        """A (n,) bool selection of tokens as a (B, T) bool tensor of each micro-batch of this process."""
        counts = [int(mask.sum()) for mask in self.masks]
        parts = is_selected[self.start : self.start + sum(counts)].split(counts)
        return [
            torch.zeros_like(mask).masked_scatter(mask, part) for mask, part in zip(self.masks, parts, strict=True)
        ]


def update_covariances(
    microbatches: list[Rollout], logps: list[Tensor], *, accelerator: Accelerator
) -> UpdateCovariances:
    """`covariance` of the tokens of all micro-batches and processes, with the means over all of them.

    To be called by all processes together; one may have no real token.

    Args:
        microbatches: the micro-batches of an optimizer step of this process.
        logps: (B, T) of each, log-probs in nats.
        accelerator: of the trainer.
    """
    masks = [loss_mask(batch) for batch in microbatches]
    parts = list(zip([batch["advantages"] for batch in microbatches], logps, masks, strict=True))
    sums = accelerator.reduce(torch.stack([token_sums(*part) for part in parts]).sum(dim=0), reduction="sum")
    local = torch.cat([covariance(*part, sums=sums)[part[-1]] for part in parts])
    counts = accelerator.gather(torch.tensor([local.numel()], device=local.device)).tolist()
    width = max(1, *counts)
    gathered = accelerator.gather(F.pad(local, (0, width - local.numel()))).view(-1, width)
    values = torch.cat([row[:count] for row, count in zip(gathered, counts, strict=True)])
    return UpdateCovariances(values, sum(counts[: accelerator.process_index]), masks)


def check_update_options(config: EntropyGRPOConfig, method: str) -> None:
    """Raise `ValueError` for options of TRL under which a token's loss or the update batch is not the paper's."""
    if config.loss_type not in RATIO_LOSSES or config.importance_sampling_level != "token":
        raise ValueError(
            f"{method} changes the loss -A · ratio of single tokens: loss_type must be one of "
            f"{', '.join(RATIO_LOSSES)} and importance_sampling_level 'token', got {config.loss_type!r} and "
            f"{config.importance_sampling_level!r}."
        )
    check_steps_inside_rollouts(config, method)


def check_per_10000(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` is a number of tokens in 10 000; shares and percentages are below 1."""
    if not 1 <= value <= 10_000:
        raise ValueError(
            f"{name} counts tokens in 10 000 and must lie in [1, 10000], got {value}: multiply a fraction (verl's "
            "kl_cov_ratio and clip_cov_ratio) by 10 000 and a percentage (the authors' k_percent) by 100."
        )


def mean_or_zero(values: Tensor) -> float:
    """Mean of (n,) values, 0 without any."""
    return values.mean().item() if values.numel() else 0.0


def _per_token(advantages: Tensor, logps: Tensor) -> Tensor:
    if advantages.shape != logps.shape[:1]:
        raise ValueError(
            f"advantages must have one number for each of the {logps.size(0)} rows of logps, got shape "
            f"{list(advantages.shape)}."
        )
    return advantages.detach()[:, None].expand_as(logps)
