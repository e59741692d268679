"""What a comparison found: figures of each training, and a table with paired intervals against the baseline."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from vlm_entropy.trainers.metrics import read_lines

from .paired import check_same_items, item_values
from .plan import Cell, Plan
from .result_files import figures, read_result, read_scores
from .statistics import paired_bootstrap, seed_spread

BASE = "base"
"""What the model that all trainings start from is called among the methods."""
LAST_LOGS = 5
GIB = 2**30


class Cost(NamedTuple):
    """What a training took; None where the log does not say."""

    tokens: int | None
    """Of prompts and completions, as TRL counts them (num_tokens). Extra passes over them are not among them."""
    seconds: float | None
    """Of its optimizer steps, sampling included; those of a killed run that it did again count once."""
    peak_memory_bytes: int | None
    """Of one process: tensors on its GPU, or all of it on CPU."""


class Outcome(NamedTuple):
    """One training, evaluated."""

    cell: Cell
    run: Path
    metrics: dict[str, float | None]
    """Of its evaluations, and `entropy`, the mean of its last log lines in nats."""
    cost: Cost


class Interval(NamedTuple):
    """A difference to the baseline and its 95 % interval; all None where there is none."""

    difference: float | None
    low: float | None
    high: float | None
    over: str | None
    """What it says how sure it is over: "seeds", the t interval of the differences of each seed's two runs, or with a
    single seed "items", the paired bootstrap over the items asked."""

    @property
    def is_shown(self) -> bool | None:
        """Whether the interval leaves out 0."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


def evaluation_folder(run: Path, plan: Plan, evaluation: str) -> Path:
    """Where the answers of an evaluation are: the first one in the run's own folder, the others inside it."""
    return run if evaluation == next(iter(plan.evaluate)) else run / evaluation


def metric_name(plan: Plan, evaluation: str, metric: str) -> str:
    """The name of a metric in the table, with that of its evaluation where there are several."""
    return metric if len(plan.evaluate) == 1 else f"{evaluation}/{metric}"


def read_outcome(cell: Cell, run: Path, plan: Plan) -> Outcome:
    """The figures of a training and of all its evaluations.

    Raises:
        ValueError: for a result that is missing.
    """
    metrics: dict[str, float | None] = {}
    for evaluation in plan.evaluate:
        found = figures(read_result(str(evaluation_folder(run, plan, evaluation))))
        metrics |= {metric_name(plan, evaluation, metric): value for metric, value in found.items()}
    logs = read_lines(run / "metrics.jsonl")
    entropies = [line["entropy"] for line in logs if line.get("entropy") is not None]
    return Outcome(cell, run, {**metrics, "entropy": _mean(entropies[-LAST_LOGS:])}, read_cost(logs))


def read_cost(logs: Sequence[Mapping[str, Any]]) -> Cost:
    """Tokens, seconds and memory of a training from the lines of its metrics.jsonl.

    seconds = Σ (step - previous step) · step_time, step_time the mean over the steps since the previous line.
    """
    steps = [0, *(line["step"] for line in logs if line.get("step_time") is not None)]
    times = [line["step_time"] for line in logs if line.get("step_time") is not None]
    seconds = sum((end - start) * time for start, end, time in zip(steps, steps[1:], times, strict=False))
    tokens = [line["num_tokens"] for line in logs if line.get("num_tokens") is not None]
    memory = [line["memory/peak_gib"] for line in logs if line.get("memory/peak_gib") is not None]
    return Cost(
        int(max(tokens)) if tokens else None, seconds if times else None, int(max(memory) * GIB) if memory else None
    )


def paired_interval(first: Sequence[Outcome], second: Sequence[Outcome], metric: str, plan: Plan) -> Interval:
    """How much more the second runs have of a metric than the first.

    Args:
        first, second: as many runs, with the same seeds in the same order.
        metric: a name of `Outcome.metrics`.
        plan: of the comparison.
    """
    pairs = [(one.metrics.get(metric), other.metrics.get(metric)) for one, other in zip(first, second, strict=True)]
    differences = [right - left for left, right in pairs if left is not None and right is not None]
    if not differences or len(differences) < len(pairs):
        return Interval(None, None, None, None)
    if len(differences) > 1:
        spread = seed_spread(differences)
        return Interval(spread.mean, spread.low, spread.high, "seeds")
    values = _item_pairs(first[0], second[0], metric, plan)
    if values is None:
        return Interval(differences[0], None, None, None)
    return Interval(*paired_bootstrap(*values, seed=0)[:3], "items")


def _item_pairs(first: Outcome, second: Outcome, metric: str, plan: Plan) -> tuple[list[float], list[float]] | None:
    """The values of both runs item by item; None for a figure that is no mean over items."""
    for evaluation in plan.evaluate:
        runs = [str(evaluation_folder(one.run, plan, evaluation)) for one in (first, second)]
        scores = [read_scores(run) for run in runs]
        name = next((it for it in next(iter(scores[0].values())) if metric_name(plan, evaluation, it) == metric), None)
        if name is not None:
            check_same_items(runs, scores)
            left, right = (item_values(run, of_run, name, scores[0]) for run, of_run in zip(runs, scores, strict=True))
            judged = [item for item in left if not math.isnan(left[item] + right[item])]
            if len(judged) > 1:
                return [left[item] for item in judged], [right[item] for item in judged]
    return None


def table(outcomes: Sequence[Outcome], plan: Plan) -> list[dict[str, Any]]:
    """A row per share of noise, method and metric; seeds that a method or the baseline lacks do not count in a pair.

    The model that all start from has a row for every share of noise, being the same for all.
    """
    return [
        row
        for noise in sorted({one.cell.noise for one in outcomes if one.cell.method != BASE})
        for method in [BASE, *plan.methods]
        for row in _rows(outcomes, plan, method, noise)
    ]


def _rows(outcomes: Sequence[Outcome], plan: Plan, method: str, noise: float) -> list[dict[str, Any]]:
    baseline = {one.cell.seed: one for one in outcomes if one.cell[:2] == (plan.baseline, noise)}
    if method == BASE:
        own = {seed: one for one in outcomes if one.cell.method == BASE for seed in baseline}
    else:
        own = {one.cell.seed: one for one in outcomes if one.cell[:2] == (method, noise)}
    seeds = [seed for seed in own if seed in baseline and method != plan.baseline]
    first, second = [baseline[seed] for seed in seeds], [own[seed] for seed in seeds]
    shared = {
        "extra_tokens": _extra([one.cost.tokens for one in first], [one.cost.tokens for one in second]),
        "extra_seconds": _extra([one.cost.seconds for one in first], [one.cost.seconds for one in second]),
        "peak_memory_bytes": max((one.cost.peak_memory_bytes or 0 for one in own.values()), default=0) or None,
    }
    rows = []
    for metric in next((list(one.metrics) for one in own.values()), []):
        values = [value for one in own.values() if (value := one.metrics[metric]) is not None]
        if not values:
            continue
        spread = seed_spread(values[:1] if method == BASE else values)
        nothing = Interval(None, None, None, None)
        found = paired_interval(first, second, metric, plan) if seeds else nothing
        rows.append(
            {
                "method": method,
                "noise": noise,
                "metric": metric,
                "seeds": spread.n,
                "mean": spread.mean,
                "spread": spread.std,
                "paired_difference": found.difference,
                "low": found.low,
                "high": found.high,
                "over": found.over,
                "shown": found.is_shown,
                **shared,
            }
        )
    return rows


def _extra(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Mean of second - first; None where one is not known."""
    pairs = zip(first, second, strict=True)
    differences = [right - left for left, right in pairs if left is not None and right is not None]
    return _mean(differences) if len(differences) == len(first) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def as_json(plan: Plan, outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of comparison.json."""
    cells = [
        {
            "method": one.cell.method,
            "noise": one.cell.noise,
            "seed": one.cell.seed,
            "run": str(one.run),
            "metrics": one.metrics,
            **one.cost._asdict(),
        }
        for one in outcomes
    ]
    return {"plan": vars(plan), "cells": cells, "table": list(rows)}


def leading_metrics(plan: Plan, outcomes: Sequence[Outcome]) -> list[str]:
    """The metrics of the printed table: the plan's, or the leading one of each evaluation, and the entropy."""
    if plan.metrics:
        return plan.metrics
    runs = [one.run for one in outcomes][:1]
    leading = [
        metric_name(plan, name, next(iter(read_result(str(evaluation_folder(run, plan, name)))["metrics"])))
        for run in runs
        for name in plan.evaluate
    ]
    return [*leading, "entropy"]


def markdown(plan: Plan, rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """The table as text: for each share of noise a line per method, with what a reader has to know beneath it."""
    parts = []
    for noise in dict.fromkeys(row["noise"] for row in rows):
        of_noise = [row for row in rows if row["noise"] == noise]
        parts.append(_section(plan, of_noise, metrics, noise))
    return "\n".join([*parts, _notes(plan, rows)])


def _section(plan: Plan, rows: Sequence[dict[str, Any]], metrics: Sequence[str], noise: float) -> str:
    header = ["method", *metrics, "extra tokens", "extra seconds", "peak memory"]
    lines = [f"Wrong labels: {noise:.0%}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = {row["metric"]: row for row in rows if row["method"] == method}
        cells = [_figure(of_method.get(metric)) for metric in metrics]
        lines.append(f"| {method} | {' | '.join([*cells, *_costs(next(iter(of_method.values())), method)])} |")
    return "\n".join([*lines, ""])


def _figure(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['mean']:.3f}" + ("" if row["spread"] is None else f" ± {row['spread']:.3f}")
    if row["low"] is not None:
        verdict = "" if row["shown"] else ", not shown"
        text += f" ({row['paired_difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]{verdict})"
    elif row["paired_difference"] is not None:
        text += f" ({row['paired_difference']:+.3f})"
    return text


def _costs(row: Mapping[str, Any], method: str) -> list[str]:
    memory = row["peak_memory_bytes"]
    if method == BASE:
        return ["", "", ""]
    tokens, seconds = row["extra_tokens"], row["extra_seconds"]
    return [
        "" if tokens is None else f"{tokens:+,.0f}",
        "" if seconds is None else f"{seconds:+,.1f}",
        "" if memory is None else f"{memory / GIB:.2f} GiB",
    ]


def _notes(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> str:
    over = {row["over"] for row in rows} - {None}
    lines = [
        f"In brackets: difference to {plan.baseline}, and its 95 % interval where there is one; extra: beyond "
        f"{plan.baseline}'s. {BASE} is the model that all start from.",
    ]
    if "seeds" in over:
        lines.append(f"± is the standard deviation over {len(plan.seeds)} seeds, and the intervals are over seeds.")
    if "items" in over:
        lines.append("The intervals are over the items asked, for one seed; another seed may turn a difference round.")
    if any(row["shown"] is False for row in rows):
        lines.append('"not shown": the interval holds 0.')
    return "\n".join([*lines, ""])
