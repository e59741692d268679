"""Entropy-guided curation and curriculum (arXiv 2602.01884): which rows to keep, and in which order to train on them.

The paper states neither the kept share nor the number of stages; both are the caller's here.
"""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction


def ascending(entropies: Sequence[float | None]) -> list[int]:
    """Row numbers in ascending order of entropy, equal ones in the order of the data; None and non-finite ones last.

    Args:
        entropies: one number per row; None, NaN and ±inf are alike.
    """

    def key(row: int) -> tuple[bool, float]:
        value = entropies[row]
        return (False, value) if value is not None and math.isfinite(value) else (True, 0.0)

    return sorted(range(len(entropies)), key=key)


def keep_indices(
    entropies: Sequence[float | None], *, keep_fraction: float | None = None, max_entropy: float | None = None
) -> list[int]:
    """The rows of low response entropy, in ascending order.

    keep_fraction = f:  the first max(1, ⌊f · N⌋) of N rows in `ascending` order
    max_entropy = h:    the rows with H_i ≤ h

    Source: stage 2 of arXiv 2602.01884, which drops the pairs of high entropy and does not say where it cuts.

    Args:
        entropies: (N,) H_i in nats; None or non-finite for a row without one, dropped before all others. A fraction
            that reaches those rows keeps them; max_entropy never does.
        keep_fraction: f in (0, 1], read as the decimal number it is written as: 0.29 of 100 rows is 29.
        max_entropy: h in nats, finite.

    Returns:
        Row numbers; none if no entropy is at most `max_entropy`, or N is 0.

    Raises:
        ValueError: unless exactly one of the two is given, and in its range.
    """
    if (keep_fraction is None) == (max_entropy is None):
        raise ValueError(f"Give keep_fraction or max_entropy, one of them (got {keep_fraction} and {max_entropy}).")
    order = ascending(entropies)
    if keep_fraction is not None:
        if not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction must lie in (0, 1], got {keep_fraction}.")
        return order[: max(1, math.floor(Fraction(str(keep_fraction)) * len(order)))]
    assert max_entropy is not None
    if not math.isfinite(max_entropy):
        raise ValueError(f"max_entropy must be a finite number of nats, got {max_entropy}.")
    values = [math.inf if value is None else value for value in entropies]
    return [row for row in order if math.isfinite(values[row]) and values[row] <= max_entropy]


def curriculum(entropies: Sequence[float | None], *, stages: int = 1, cumulative: bool = False) -> list[list[int]]:
    """The rows of each stage of training, from low entropy to high.

    The N rows in `ascending` order are cut into S contiguous blocks b_1 ... b_S, of which the first N mod S hold
    ⌊N / S⌋ + 1 rows and the others ⌊N / S⌋ (the sizes of `numpy.array_split`). Stage k is

        b_k                       or, cumulative,        b_1 ∪ ... ∪ b_k

    Source: stage 3 of arXiv 2602.01884, low-to-high training; its number of stages is not stated, one is fully sorted.

    Args:
        entropies: (N,) in nats; rows with None or a non-finite number come last.
        stages: S, 1 to N.
        cumulative: whether a stage repeats the rows of those before it, again in ascending order.

    Returns:
        Row numbers of each stage.

    Raises:
        ValueError: for a number of stages outside [1, N].
    """
    if not 1 <= stages <= len(entropies):
        raise ValueError(f"stages must be 1 to the number of rows ({len(entropies)}), got {stages}.")
    order = ascending(entropies)
    size, larger = divmod(len(order), stages)
    ends = [stage * size + min(stage, larger) for stage in range(stages + 1)]
    return [order[0 if cumulative else start : end] for start, end in itertools.pairwise(ends)]
