"""The tensors of a rollout, row by row: what TRL passes from sampling to the loss."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""(N, P + T) entries over prompt and completion."""

COMPLETION_PADDING: dict[str, float] = {
    "completion_mask": 0,
    "tool_mask": 1,
    "old_per_token_logps": 0.0,
    "ref_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
}
"""(N, T) entries over the completion beside its ids, and what TRL pads them with."""


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
    """Per-row entries of a rollout for some rows; image tensors are stored flat, all images of all rows in a row."""
    split = split_pixel_values_by_grid(fields)
    picked = {
        name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in split.items()
    }
    return unsplit_pixel_values_by_grid(picked)


def join_rollouts(parts: Sequence[tuple[Rollout, list[int]]], *, pad_id: int) -> Rollout:
    """Chosen rows of several rollouts as one rollout, in the order given.

    Prompts are padded on the left and completions on the right to the longest of the parts. A part may lack what its
    rows of text do not need: image tensors, `num_images`, token types, and InternVL's `num_tiles`, which TRL leaves
    out where every image is a single tile.

    Args:
        parts: rollouts of one run, without the entries of `prepare_rollout`, and one or more row numbers of each.
        pad_id: the tokenizer's padding token.

    Returns:
        The rows; 0-d entries, which are no row's, are left out (`num_items_in_batch` is for the caller to count).

    Raises:
        ValueError: for an entry that only some parts have and that is not about images.
    """
    known = {name: value for rollout, _ in parts for name, value in rollout.items()}
    known = {name: value for name, value in known.items() if not isinstance(value, Tensor) or value.dim() > 0}
    picked = [select_rows({name: _entry(rollout, name, known) for name in known}, rows) for rollout, rows in parts]
    padded = {name: _padded(picked, name, pad_id) for name in known}
    return {
        name: torch.cat(values) if isinstance(values[0], Tensor) else list(itertools.chain(*values))
        for name, values in padded.items()
    }


def _padded(parts: list[Rollout], name: str, pad_id: int) -> list:
    """An entry of each part, as wide as the longest prompt and completion of all parts ask for."""
    values = [part[name] for part in parts]
    if name in TOKEN_TYPES:
        prompts, completions = ([part[f"{side}_ids"].size(1) for part in parts] for side in ("prompt", "completion"))
        missing = [(max(prompts) - p, max(completions) - c) for p, c in zip(prompts, completions)]
        return [F.pad(value, sides) for value, sides in zip(values, missing)]
    padding = {"prompt_ids": pad_id, "prompt_mask": 0, "completion_ids": pad_id, **COMPLETION_PADDING}
    if name not in padding:
        return values
    # Of its own widest part: a ratio per sequence is (N, 1) in all of them.
    widest = max(value.size(1) for value in values)
    counts = [widest - value.size(1) for value in values]
    missing = [(count, 0) if name in ("prompt_ids", "prompt_mask") else (0, count) for count in counts]
    return [F.pad(value, sides, value=padding[name]) for value, sides in zip(values, missing)]


def _entry(rollout: Rollout, name: str, known: Rollout) -> Any:
    """An entry of a rollout; one that it lacks, as rows of text would have it, given the entry of another rollout."""
    if name in rollout:
        return rollout[name]
    rows = rollout["prompt_ids"].size(0)
    if name in ("num_images", "num_tiles"):
        return rollout.get("num_images", [0] * rows)
    if name in TOKEN_TYPES:
        return known[name].new_zeros(rows, rollout["prompt_ids"].size(1) + rollout["completion_ids"].size(1))
    if name in FORWARD_FIELDS:
        return known[name][:0]
    raise ValueError(f"Only some of the rollouts to join have the entry {name!r}.")


def loss_mask(rollout: Rollout) -> Tensor:
    """(N, T) bool, true where a token of a completion is the policy's own: neither padding nor a tool's answer."""
    mask = rollout["completion_mask"]
    return (mask * rollout["tool_mask"] if "tool_mask" in rollout else mask).bool()
