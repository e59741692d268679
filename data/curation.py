"""Entropy-guided curation (arXiv 2602.01884, stage 2): a row's response entropy, and what it says of the labels."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from .curation_statistics import Estimate, odds_ratio, spearman
from .curriculum import ascending, curriculum, keep_indices

__all__ = ["Bin", "CurationReport", "curation_report", "curriculum", "keep_indices", "response_entropy"]

HISTOGRAM_BINS = 20
ACCURACY_BINS = 10
BAR = 40


def response_entropy(entropies: Sequence[float | None]) -> float | None:
    """Response entropy of a row.

    H = (1/K) Σ_k (1/len_k) Σ_t H(π(· | x, y_k,<t)),  y_k ~ π at temperature 1, k = 1 ... K

    Source: arXiv 2602.01884, which does not define it; the reading of METHODS is the mean over sampled responses of
    the mean token entropy.

    Args:
        entropies: K ≥ 1 means over the tokens of a response, in nats; None for an empty or non-finite one, which does
            not count.

    Returns:
        Nats, None if no response counts.
    """
    finite = [value for value in entropies if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None


class Bin(NamedTuple):
    """Rows of neighbouring entropy."""

    low: float
    """Lowest and highest entropy in it, in nats."""
    high: float
    rows: int
    """With an accuracy."""
    accuracy: float | None
    noisy: float | None
    """Share of rows known to have a wrong label."""


@dataclass(frozen=True)
class CurationReport:
    """What scoring a data set by entropy showed, and what it cost."""

    rows: int
    without_entropy: int
    """Rows whose responses were all empty or not finite; they come last and are dropped first."""
    samples: int
    quantiles: dict[str, float]
    histogram: dict[str, list[float]]
    """`edges` in nats, and `counts` between them."""
    bins: list[Bin]
    """Equally many rows each, entropy ascending."""
    spearman: Estimate
    """Rank correlation of entropy and accuracy over the rows that have both."""
    noise: dict[str, Any] | None
    """Rows with known wrong labels, by kept and dropped; None where the data does not say, or nothing is dropped."""
    cost: dict[str, float]
    """`prompt_tokens`, `response_tokens`, `seconds` of generation added up over processes."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bins": [one._asdict() for one in self.bins], "spearman": self.spearman._asdict()}

    def __str__(self) -> str:
        lines = [f"{self.rows} rows, {self.samples} sampled responses each, response entropy in nats:"]
        edges, counts = self.histogram["edges"], self.histogram["counts"]
        most = max([*counts, 1])
        for left, right, count in zip(edges, edges[1:], counts, strict=False):
            lines.append(f"  {left:7.3f} to {right:7.3f} {int(count):7d} {'#' * math.ceil(BAR * count / most)}")
        if self.without_entropy:
            lines.append(f"  {self.without_entropy} rows without entropy: their responses are empty")
        if any(one.accuracy is not None for one in self.bins):
            lines.append("accuracy by entropy, equally many rows a line:")
        for one in self.bins:
            if one.accuracy is not None:
                noisy = "" if one.noisy is None else f", {one.noisy:.1%} labels wrong"
                lines.append(f"  {one.low:7.3f} to {one.high:7.3f}  {one.accuracy:.3f} of {one.rows}{noisy}")
        if self.spearman.value is not None:
            lines.append(f"Spearman's rho of entropy and accuracy: {written(self.spearman)}")
        if self.noise is not None:
            lines.append(
                "wrong labels: {kept_noisy} of {kept} kept rows, {dropped_noisy} of {dropped} dropped rows".format(
                    **self.noise
                )
            )
            odds = Estimate(*self.noise["odds_ratio"].values())
            lines.append(f"odds of a dropped row to be wrong, against a kept one: {written(odds)}")
        lines.append(
            "cost: {prompt_tokens:.0f} prompt and {response_tokens:.0f} response tokens, {seconds:.1f} s".format(
                **self.cost
            )
        )
        return "\n".join(lines)


def written(estimate: Estimate) -> str:
    """An estimate with its 95 % interval in words."""
    if estimate.value is None:
        return "not determined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def curation_report(
    entropies: Sequence[float | None],
    accuracies: Sequence[float | None],
    is_noisy: Sequence[bool] | None,
    kept: Sequence[int] | None,
    *,
    samples: int,
    cost: dict[str, float],
) -> CurationReport:
    """Describe the entropies of a data set.

    Args:
        entropies: (N,) of `response_entropy`.
        accuracies: (N,) mean reward of the responses of each row, None where it cannot be judged.
        is_noisy: (N,) whether the label is known to be wrong; None if the data does not say.
        kept: row numbers that are kept; None if none are to be dropped.
        samples: responses of each row.
        cost: as in `CurationReport`.
    """
    order = [row for row in ascending(entropies) if entropies[row] is not None]
    values = np.array([entropies[row] for row in order], dtype=float)
    counts, edges = np.histogram(values, bins=HISTOGRAM_BINS) if len(values) else (np.array([]), np.array([]))
    both = [(entropy, accuracy) for entropy, accuracy in zip(entropies, accuracies) if None not in (entropy, accuracy)]
    return CurationReport(
        rows=len(entropies),
        without_entropy=len(entropies) - len(order),
        samples=samples,
        quantiles={str(q): float(np.quantile(values, q)) for q in (0, 0.25, 0.5, 0.75, 1)} if len(values) else {},
        histogram={"edges": edges.tolist(), "counts": counts.tolist()},
        bins=[
            _bin(part, entropies, accuracies, is_noisy) for part in np.array_split(order, ACCURACY_BINS) if len(part)
        ],
        spearman=spearman(*zip(*both)) if len(both) >= 2 else Estimate(None, None, None),
        noise=None if is_noisy is None or kept is None else _noise(is_noisy, kept),
        cost=cost,
    )


def _bin(rows: Any, entropies: Sequence, accuracies: Sequence, is_noisy: Sequence[bool] | None) -> Bin:
    judged = [accuracies[row] for row in rows if accuracies[row] is not None]
    return Bin(
        low=float(entropies[rows[0]]),
        high=float(entropies[rows[-1]]),
        rows=len(judged),
        accuracy=fmean(judged) if judged else None,
        noisy=None if is_noisy is None else fmean(bool(is_noisy[row]) for row in rows),
    )


def _noise(is_noisy: Sequence[bool], kept: Sequence[int]) -> dict[str, Any] | None:
    """Wrong labels among dropped and kept rows, with the odds ratio; None if no row is dropped."""
    keeps = set(kept)
    dropped = [row for row in range(len(is_noisy)) if row not in keeps]
    if not dropped:
        return None
    counts = {name: sum(bool(is_noisy[row]) for row in rows) for name, rows in (("kept", kept), ("dropped", dropped))}
    table = (counts["dropped"], len(dropped) - counts["dropped"], counts["kept"], len(kept) - counts["kept"])
    return {
        "kept": len(kept),
        "kept_noisy": counts["kept"],
        "dropped": len(dropped),
        "dropped_noisy": counts["dropped"],
        "odds_ratio": odds_ratio(*table)._asdict(),
    }
