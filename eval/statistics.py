"""How sure a number is: intervals of means, differences between two runs on the same items, spread over seeds."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, t

_DRAWS_AT_ONCE = 2**22  # items drawn in one block of a bootstrap, 16 MB of indices and 32 MB of values


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n),  p = successes / n, z the normal quantile of the confidence.

    Source: Wilson, JASA 22 (1927).

    Args:
        successes: count, 0 to `trials`.
        trials: n ≥ 1.
        confidence: in (0, 1).

    Returns:
        (low, high), each in [0, 1].
    """
    interval = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_means(values: Sequence[float] | np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` samples of the values, each as many as there are, drawn with replacement.

    The memory is bounded; the time is that of drawing resamples · n numbers, about 10 s for 10 000 of 100 000.

    Raises:
        ValueError: for fewer than two values, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2 or not np.isfinite(array).all():
        raise ValueError(f"at least two finite values are needed, got {array.size}: {array[:3].tolist()} ...")
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // array.size)
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    draws = (rng.integers(array.size, size=(block, array.size), dtype=np.int32) for block in blocks)
    return np.concatenate([array[drawn].mean(axis=1) for drawn in draws])


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_mean_interval(
    values: Sequence[float], *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, for values that are not 0 or 1.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. It is a little narrow for few
    values: of Gaussian samples of 20, about 92 % of the 95 % intervals hold the mean.

    Args:
        values: n >= 1 finite numbers, one per item.
        seed: of the resamples.
        resamples: number of them; more make the ends less random.
        confidence: in (0, 1).

    Returns:
        (low, high); (-inf, inf) for a single value, which says nothing of its spread.

    Raises:
        ValueError: for no values, or one that is not finite.
    """
    if len(values) == 1 and math.isfinite(values[0]):
        return -math.inf, math.inf
    return _percentiles(bootstrap_means(values, resamples=resamples, seed=seed), confidence)


class Mean(NamedTuple):
    """A mean over items with its 95 % interval."""

    value: float
    low: float
    high: float
    interval: str
    """Wilson for values 0 and 1, bootstrap for others."""


def is_binary(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)


def mean_with_interval(values: Sequence[float], *, seed: int, resamples: int = 10_000) -> Mean:
    """Mean over items: Wilson's interval if they are all 0 or 1, otherwise the bootstrap's."""
    if is_binary(values):
        return Mean(fmean(values), *wilson_interval(int(sum(values)), len(values)), "wilson")
    return Mean(fmean(values), *bootstrap_mean_interval(values, seed=seed, resamples=resamples), "bootstrap")


class PairedDifference(NamedTuple):
    """The mean difference of two runs on the same items."""

    difference: float
    """mean(second - first)."""
    low: float
    high: float
    p_value: float
    """Two-sided, of no difference."""


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> PairedDifference:
    """Mean difference second - first over the same items, its percentile interval and a p-value.

    The items are drawn with replacement, each with its two values, B times: d*₁ ... d*_B are the mean differences.
    The p-value inverts the interval, p = min(1, 2 min((1 + #{d* ≤ 0}) / (B + 1), (1 + #{d* ≥ 0}) / (B + 1))), so it is
    2 / (B + 1) at least.

    Source: Efron and Tibshirani (1993), chapters 13 and 15.4; the 1 that is added: Davison and Hinkley, Bootstrap
    Methods (1997), equation 4.11. It says how sure the difference of these two runs is on other items, not on other
    seeds of training: for those see `seed_spread`.

    Args:
        first, second: n >= 2 finite numbers each, item by item.
        resamples: B.
        confidence: in (0, 1).
        seed: of the resamples.

    Raises:
        ValueError: for unequal lengths, fewer than two items, or a value that is not finite.
    """
    if len(first) != len(second):
        raise ValueError(f"both runs must have the same items, got {len(first)} and {len(second)}")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    means = bootstrap_means(differences, resamples=resamples, seed=seed)
    low, high = _percentiles(means, confidence)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return PairedDifference(float(differences.mean()), low, high, min(1.0, 2 * (1 + tail) / (resamples + 1)))


class McNemar(NamedTuple):
    """Items that only one of two runs has right, and how surprising their split is."""

    first_only: int
    second_only: int
    p_value: float


def mcnemar(first: Sequence[float], second: Sequence[float]) -> McNemar:
    """McNemar's exact test of two runs with values 0 and 1 on the same items.

    Of b + c items that one run has right and the other wrong, b ~ Binomial(b + c, 1/2) if the runs are equally good;
    the p-value is two-sided, 1 where there is no such item.

    Source: McNemar, Psychometrika 12 (1947); exact instead of its χ².

    Raises:
        ValueError: for unequal lengths, or a value that is neither 0 nor 1.
    """
    if len(first) != len(second):
        raise ValueError(f"both runs must have the same items, got {len(first)} and {len(second)}")
    odd = next((value for value in (*first, *second) if value not in (0, 1)), None)
    if odd is not None:
        raise ValueError(f"McNemar's test is for values 0 and 1, got {odd}")
    splits = Counter(zip(first, second))
    b, c = splits[1, 0], splits[0, 1]
    return McNemar(b, c, float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0)


class Spread(NamedTuple):
    """Mean over seeds; the rest is None for a single one, which has no spread."""

    n: int
    mean: float
    std: float | None
    """Of the sample, divided by n - 1."""
    standard_error: float | None
    low: float | None
    high: float | None


def seed_spread(values: Sequence[float], *, confidence: float = 0.95) -> Spread:
    """Mean, standard deviation, standard error and t interval of one number over seeds.

    mean ± t_{n-1} s / √n,  s² = Σ (x - mean)² / (n - 1).

    For 3 seeds t is 4.30: the interval is wide, and rightly.

    Args:
        values: n >= 1 results that differ in their seed alone.
        confidence: in (0, 1).

    Raises:
        ValueError: for no values.
    """
    if not values:
        raise ValueError("seed_spread needs at least one value")
    mean, n = fmean(values), len(values)
    if n == 1:
        return Spread(1, mean, None, None, None, None)
    std = stdev(values)
    error = std / math.sqrt(n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    return Spread(n, mean, std, error, mean - half, mean + half)


def pass_at_k(correct: int, total: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k responses is right, from `total` responses.

    1 - C(n - c, k) / C(n, k),  n = total, c = correct.

    Source: Chen et al., arXiv 2107.03374, equation 1; in whole numbers, so nothing overflows.

    Raises:
        ValueError: unless 0 <= correct <= total and 1 <= k <= total.
    """
    if not (0 <= correct <= total and 1 <= k <= total):
        raise ValueError(f"pass_at_k needs 0 <= correct <= total and 1 <= k <= total, got {correct}, {total} and {k}")
    return 1 - math.comb(total - correct, k) / math.comb(total, k)


def mean_at_k(values: Sequence[float]) -> float:
    """Mean value of the k responses to one item, the expected value of one of them.

    Raises:
        ValueError: for no responses.
    """
    if not values:
        raise ValueError("mean_at_k needs at least one response")
    return fmean(values)


def majority_at_k(parsed: Sequence[str | None], values: Sequence[float]) -> float:
    """Value of the answer that most of the k responses to one item give.

    As in TTRL (arXiv 2504.16084): equal texts are equal votes, of several answers with as many votes the one seen
    first wins, a response that could not be read votes for nothing. The value is that of the first response with the
    winning answer; without a single vote it is 0.0, that of a wrong answer.

    majority_at_k(["2", "1", None, "1"], [0.0, 1.0, 0.0, 1.0]) is 1.0.

    Args:
        parsed: the answer of each response, None if it could not be read.
        values: what each response is worth, on a scale where 0 is wrong.

    Raises:
        ValueError: for unequal lengths or no responses.
    """
    if len(parsed) != len(values) or not values:
        raise ValueError(f"as many values as answers are needed, at least one, got {len(values)} and {len(parsed)}")
    votes = Counter(answer for answer in parsed if answer is not None)
    if not votes:
        return 0.0
    ((winner, _),) = votes.most_common(1)
    return values[parsed.index(winner)]
