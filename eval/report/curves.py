"""From log lines to what is drawn: which figures, on how many points, with which band."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .runs import Curve, Metrics

POINTS = 300
"""Points of a curve at most; longer runs are thinned."""
ALL_POINTS = 4000
"""Points of all curves of a chart at most, with 50 of each at least."""


@dataclass(frozen=True)
class Chart:
    """A figure that the trainers log."""

    key: str
    title: str
    unit: str = ""
    note: str = ""


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Learning": (
        Chart("reward", "Reward", note="weighted sum of all rewards, mean over completions"),
        Chart("accuracy", "Accuracy while training", note="completions whose first reward is above 0.5"),
        Chart("reward_std", "Standard deviation of the reward"),
        Chart("frac_reward_zero_std", "Zero-variance groups", note="share of groups whose rewards are all equal"),
    ),
    "Entropy": (
        Chart("entropy", "Token entropy", "nats"),
        Chart("entropy/think", "Entropy while thinking", "nats"),
        Chart("entropy/answer", "Entropy in the answer", "nats", "tokens without a digit"),
        Chart("entropy/coordinate", "Entropy of coordinates", "nats", "tokens of the answer with a digit"),
        Chart("entropy/correct", "Entropy of correct completions", "nats", "first reward above 0.5"),
        Chart("entropy/wrong", "Entropy of wrong completions", "nats", "first reward of 0.5 or less"),
        Chart("two_stage/coefficient", "Entropy coefficient", note="positive raises entropy"),
        Chart("entropy_coef", "Entropy coefficient of TRL's bonus"),
        Chart("two_stage/stage", "Stage"),
    ),
    "Policy update": (
        Chart("advantage/covariance", "Covariance of advantage and log-prob", "nats", "positive lowers entropy"),
        Chart("advantage/sampled_abs", "Size of the advantages as sampled", note="mean |A| over tokens"),
        Chart("advantage/used_abs", "Size of the advantages in the loss", note="after the method has shaped them"),
        Chart("clip_ratio/region_mean", "Clipped tokens", note="share"),
        Chart("clip_ratio/low_mean", "Clipped below", note="share"),
        Chart("clip_ratio/high_mean", "Clipped above", note="share"),
        Chart("kl", "KL to the reference", "nats"),
        Chart("grad_norm", "Norm of the gradient"),
        Chart("loss", "Loss"),
        Chart("learning_rate", "Learning rate"),
    ),
    "Lengths": (
        Chart("completions/mean_length", "Length of completions", "tokens"),
        Chart("completions/max_length", "Longest completion", "tokens"),
        Chart("completions/clipped_ratio", "Completions cut off", note="share"),
    ),
    "Cost": (
        Chart("step_time", "Time of a step", "s"),
        Chart("tokens_per_second", "Throughput", "tokens/s", "prompts and completions, all processes"),
        Chart("memory/peak_gib", "Peak memory", "GiB", "of the main process, so far"),
    ),
}

NOT_DRAWN = {"step", "epoch", "num_tokens", "total_flos", "completion_length", "clip_ratio"}
OF_TRL = ("rewards", "completions", "clip_ratio", "sampling", "tools", "entropy", "advantage")
OWN = "The method's own figures"
OTHERS = "Everything else that was logged"


def charts_of(curves: Sequence[Curve]) -> dict[str, list[Chart]]:
    """By section, the charts for which some run logged a number; what `SECTIONS` does not know comes last."""
    logged = {
        name
        for curve in curves
        for run in curve.runs
        for name in {name for line in run.metrics for name in line}
        if not np.isnan(column(run.metrics, name)).all()
    }
    known = {section: [chart for chart in charts if chart.key in logged] for section, charts in SECTIONS.items()}
    named = {chart.key for charts in SECTIONS.values() for chart in charts}
    aliases = {name for name in logged if name.startswith("rewards/") and f"{name}/mean" in logged}
    rest = sorted(name for name in logged - named - NOT_DRAWN - aliases if not name.startswith(("eval_", "train_")))
    own = [name for name in rest if is_of_method(name)]
    known |= {
        OWN: [Chart(name, name) for name in own],
        OTHERS: [Chart(name, name) for name in rest if name not in own],
    }
    return {section: charts for section, charts in known.items() if charts}


def is_of_method(name: str) -> bool:
    """Whether a metric is one that a method logs about itself, as `calibrl/gap`."""
    prefix, slash, _ = name.partition("/")
    return bool(slash) and prefix not in OF_TRL and not prefix.endswith("_reward")


def step_edges(steps: Iterable[int], *, points: int) -> np.ndarray:
    """(P + 1,) edges of P buckets of steps, each [edge, next edge): one for each step, or equally wide ones.

    Args:
        steps: of all runs, at least one.
        points: P at most.
    """
    distinct = np.unique(np.fromiter(steps, dtype=np.float64))
    if len(distinct) <= points:
        return np.append(distinct, distinct[-1] + 1)
    return np.linspace(distinct[0], distinct[-1] + 1, points + 1)


def thin(lines: Metrics, key: str, edges: np.ndarray) -> np.ndarray:
    """(3, P) least, mean and greatest value of a figure in each bucket of steps, NaN where there is none.

    Args:
        lines: of a run, in order of their steps.
        key: the figure.
        edges: (P + 1,) of `step_edges`.
    """
    values = column(lines, key)
    bucket = np.searchsorted(edges, column(lines, "step"), side="right") - 1
    order = np.argsort(bucket, kind="stable")
    order = order[~np.isnan(values[order])]
    result = np.full((3, len(edges) - 1), math.nan)
    if len(order):
        places, starts, counts = np.unique(bucket[order], return_index=True, return_counts=True)
        of_buckets = values[order]
        result[0, places] = np.minimum.reduceat(of_buckets, starts)
        result[1, places] = np.add.reduceat(of_buckets, starts) / counts
        result[2, places] = np.maximum.reduceat(of_buckets, starts)
    return result


def column(lines: Metrics, key: str) -> np.ndarray:
    """(N,) a figure of each line, NaN where there is no finite number."""
    values = np.array([value if type(value := line.get(key)) in (int, float) else math.nan for line in lines])
    return np.where(np.isfinite(values), values, math.nan)


def band(curve: Curve, key: str, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) lower end, line and upper end of a curve.

    Of one run: least, mean and greatest value of each bucket. Of several: the mean over the runs, minus and plus the
    standard deviation (that of a sample, divided by n - 1) where at least two runs have a value.
    """
    thinned = np.stack([thin(run.metrics, key, edges) for run in curve.runs])
    if len(curve.runs) == 1:
        low, mean, high = thinned[0]
        return low, mean, high
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # buckets without a value, or with one
        mean = np.nanmean(thinned[:, 1], axis=0)
        std = np.nanstd(thinned[:, 1], axis=0, ddof=1)
    return mean - std, mean, mean + std


def drawn(curves: Sequence[Curve]) -> dict[str, Any]:
    """All curves as plain lists: `x` (P,) steps, `labels`, and by chart's key a `lines` entry for each curve.

    A line is None for a curve without a value, else {"mean", "low", "high"} with null for a missing value; "low" and
    "high" are left out where they nowhere differ from the mean.
    """
    if not curves:
        return {"x": [], "labels": [], "sections": []}
    steps = (line["step"] for curve in curves for run in curve.runs for line in run.metrics)
    edges = step_edges(steps, points=max(50, min(POINTS, ALL_POINTS // len(curves))))
    sections = [
        {
            "title": section,
            "charts": [
                {**vars(chart), "lines": [_line(*band(curve, chart.key, edges)) for curve in curves]}
                for chart in charts
            ],
        }
        for section, charts in charts_of(curves).items()
    ]
    return {"x": _steps(edges), "labels": [curve.label for curve in curves], "sections": sections}


def _steps(edges: np.ndarray) -> list[float | None]:
    if np.all(edges[:-1] == np.round(edges[:-1])):
        return edges[:-1].tolist()
    return _rounded((edges[:-1] + edges[1:] - 1) / 2)


def _line(low: np.ndarray, mean: np.ndarray, high: np.ndarray) -> dict[str, list] | None:
    if np.isnan(mean).all():
        return None
    line = {"mean": _rounded(mean)}
    if np.nanmax(np.where(np.isnan(high), 0.0, high - low)) > 0:
        line |= {"low": _rounded(low), "high": _rounded(high)}
    return line


def _rounded(values: np.ndarray) -> list[float | None]:
    """Five significant digits; None for NaN."""
    return [None if math.isnan(value) else float(f"{value:.5g}") for value in values.tolist()]
