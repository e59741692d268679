"""The tensors of a rollout, row by row: what TRL passes from sampling to the loss."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

Rollout = dict[str, Any]
"""What TRL passes from sampling to the loss, one entry per row: ids, masks, advantages, old and reference log-probs,
image tensors, and whatever `prepare_rollout` added."""

FORWARD_FIELDS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""Entries of a rollout that TRL's forward takes beside the token ids and their mask."""


class Scored(NamedTuple):
    """Completions sampled and scored by one process."""

    rollout: Rollout
    """TRL's tensors of N rows."""
    examples: list[dict]
    """The N data set rows."""
    rewards: Tensor
    """(N, K) unweighted rewards, NaN where a function cannot judge a row."""


def total_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """Total reward r_i = Σ_k w_k · r_ik of each row over the functions that judged it, as TRL adds it up.

    Args:
        rewards: (N, K) rewards of K functions, NaN where a function cannot judge a row.
        weights: (K,).

    Returns:
        (N,), NaN for a row that no function judged.
    """
    totals = (rewards * weights).nansum(dim=1)
    return torch.where(rewards.isnan().all(dim=1), math.nan, totals)


def merge_rollout(rollout: Rollout, extra: dict[str, Tensor], *, rows: int) -> Rollout:
    """The rollout with a method's entries added.

    Raises:
        ValueError: for an entry that exists already, or that TRL could not shuffle and split by rows.
    """
    for name, value in extra.items():
        if name in rollout:
            raise ValueError(f"prepare_rollout returned {name!r}, which the rollout already has.")
        if not isinstance(value, Tensor) or (value.dim() > 0 and value.size(0) != rows):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"prepare_rollout returned {name!r} as {shape}; it must be a 0-d or ({rows}, ...) tensor."
            )
    return {**rollout, **extra}


def select_rows(fields: Rollout, rows: list[int]) -> Rollout:
    """Entries of `FORWARD_FIELDS` for some rows; image tensors are stored flat, all images of all rows in a row."""
    split = split_pixel_values_by_grid(fields)
    picked = {
        name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in split.items()
    }
    return unsplit_pixel_values_by_grid(picked)
