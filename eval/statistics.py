"""How sure a number is."""

from scipy.stats import binomtest


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
