"""Does entropy tell which labels are wrong? A rank correlation and an odds ratio, each with an interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import contingency, norm, rankdata


class Estimate(NamedTuple):
    """A value and its interval, None where the data do not determine it."""

    value: float | None
    low: float | None
    high: float | None


def spearman(x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Spearman's rank correlation ρ, ties having their mean rank, with its interval through Fisher's z.

    tanh(artanh ρ ± z √((1 + ρ²/2) / (n - 3))),  z the normal quantile of the confidence.

    Source: Bonett and Wright, Psychometrika 65 (2000), 23-28. The interval is an approximation: it is good for
    n > 25 and |ρ| < 0.95 or so, and knows nothing of ties.

    Args:
        x, y: n >= 2 finite numbers each, paired.
        confidence: in (0, 1).

    Returns:
        ρ in [-1, 1] and its interval. ρ is None where x or y is constant, the interval None for n < 4, and at
        |ρ| = 1, where artanh is infinite and the formula would claim to be certain.

    Raises:
        ValueError: for unequal lengths, fewer than two pairs, or a number that is not finite.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"two lists of the same length, at least 2, are needed, got {len(x)} and {len(y)} numbers")
    if not np.isfinite([x, y]).all():
        raise ValueError("x and y must be finite numbers")
    ranks = rankdata([x, y], axis=1)
    dx, dy = ranks - ranks.mean(axis=1, keepdims=True)
    scale = math.sqrt(float(dx @ dx) * float(dy @ dy))
    if scale == 0.0:
        return Estimate(None, None, None)
    rho = max(-1.0, min(1.0, float(dx @ dy) / scale))
    if len(x) < 4 or abs(rho) == 1.0:
        return Estimate(rho, None, None)
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return Estimate(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


def odds_ratio(a: int, b: int, c: int, d: int, *, confidence: float = 0.95) -> Estimate:
    """The odds ratio of a 2 x 2 table, (a / b) / (c / d) = ad / bc, with its interval.

    The interval is exp(ln(ad/bc) ± z √(1/a + 1/b + 1/c + 1/d)) (Woolf 1955, scipy's kind="sample"). With an empty cell
    that one does not exist; the exact conditional interval (scipy's kind="conditional") stands in its place, whose
    one end is 0 or inf. No half is added to the cells.

    Args:
        a, b: counts of the one group, with and without the property.
        c, d: those of the other.
        confidence: in (0, 1).

    Returns:
        The ratio in [0, inf] and its interval; all None where a group, or the property, never or always occurs.

    Raises:
        ValueError: for a negative count.
    """
    table = [[a, b], [c, d]]
    if min(a, b, c, d) < 0:
        raise ValueError(f"counts must be at least 0, got {table}")
    if not all([a + b, c + d, a + c, b + d]):
        return Estimate(None, None, None)
    kind = "sample" if all([a, b, c, d]) else "conditional"
    result = contingency.odds_ratio(table, kind=kind)
    interval = result.confidence_interval(confidence)
    return Estimate(float(result.statistic), float(interval.low), float(interval.high))
