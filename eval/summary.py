"""From the scores of single responses to the figures of a result, each with how sure it is."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from .protocols import Item, Protocol, Reference, Score
from .statistics import majority_at_k, mean_with_interval, pass_at_k

Figure = dict[str, Any]
"""{"value", "low", "high", "items"}: a mean over items with its 95 % interval."""


def figure(values: Sequence[float]) -> Figure:
    """The mean of one value per item: with Wilson's interval for shares of 0 and 1, else with that of the bootstrap.

    Items without a value (NaN) are left out and not counted.

    Args:
        values: one per item, its mean over samples.
    """
    judged = [value for value in values if not math.isnan(value)]
    if not judged:
        return {"value": None, "low": None, "high": None, "items": 0}
    mean = mean_with_interval(judged, seed=0)
    return {"value": mean.value, "low": mean.low, "high": mean.high, "items": len(judged)}


def item_values(scores: Sequence[Score]) -> dict[str, float]:
    """Each metric's mean over the samples of one item; NaN where one is NaN."""
    return {name: fmean(score.values[name] for score in scores) for name in scores[0].values}


def unit_values(items: Sequence[Item], values: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The values of each unit (see `Item.unit`), the means of its items, in the order of the first ones."""
    units: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for item, of_item in zip(items, values, strict=True):
        units[item.unit or item.id].append(of_item)
    return [{name: fmean(of_item[name] for of_item in unit) for name in unit[0]} for unit in units.values()]


def several_samples(scores: Sequence[Sequence[Score]]) -> list[dict[str, float]]:
    """majority@k and pass@k of the leading metric of each item, for its k samples (the mean is mean@k).

    Nothing for k = 1 and for values that are NaN; pass@k is there only where every response is worth 0 or 1.
    """
    k, leading = len(scores[0]), next(iter(scores[0][0].values))
    worth = [[score.values[leading] for score in samples] for samples in scores]
    if k == 1 or any(math.isnan(value) for values in worth for value in values):
        return [{} for _ in scores]
    votes = [[score.parsed for score in samples] for samples in scores]
    figures = [{f"majority@{k}": majority_at_k(*item)} for item in zip(votes, worth, strict=True)]
    if all(value in (0.0, 1.0) for values in worth for value in values):
        for of_item, values in zip(figures, worth, strict=True):
            of_item[f"pass@{k}"] = pass_at_k(int(sum(values)), k, k)
    return figures


def cells_of(items: Sequence[Item], values: Sequence[dict[str, float]], protocol: Protocol) -> dict[str, Any]:
    """By grouping and cell, the leading metric of the items in it."""
    leading = next(iter(values[0]))
    groups: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item, of_item in zip(items, values, strict=True):
        for grouping, cell in protocol.cells(item).items():
            groups[grouping][cell].append(of_item[leading])
    return {
        grouping: {cell: figure(of_cell) for cell, of_cell in sorted(cells.items())}
        for grouping, cells in groups.items()
    }


def summarise(items: Sequence[Item], scores: Sequence[Sequence[Score]], protocol: Protocol) -> dict[str, Any]:
    """Every figure of a run.

    Args:
        items: N items.
        scores: of the samples of each item, equally many for all.
        protocol: how they were scored.

    Several items of one unit, such as both orders of two responses, count as one with their mean.

    Returns:
        `metrics`: a figure by metric, the protocol's own first, then with several samples `majority@k` and `pass@k`,
        and `no_answer`, the share of responses that hold none; `totals`: the protocol's figures of the whole set;
        `cells`: the leading metric by group.
    """
    values = [item_values(of_item) for of_item in scores]
    unread = [{"no_answer": fmean(score.parsed is None for score in of_item)} for of_item in scores]
    every = [{**a, **b, **c} for a, b, c in zip(values, several_samples(scores), unread, strict=True)]
    by_unit = unit_values(items, every)
    return {
        "metrics": {name: figure([of_unit[name] for of_unit in by_unit]) for name in by_unit[0]},
        "totals": protocol.totals(items, scores),
        "cells": cells_of(items, values, protocol),
    }


def compare_with(
    references: Iterable[Reference], summary: dict[str, Any], *, split: str | None, obstacles: Sequence[str]
) -> list[dict[str, Any]]:
    """Published numbers beside ours, and what keeps the two from being compared.

    Args:
        references: of the protocol.
        summary: of `summarise`.
        split: of the run; a number of another split is left out.
        obstacles: why this run is not the published procedure, "--limit 100".
    """
    metrics, totals = summary["metrics"], summary["totals"]
    return [
        {
            **reference._asdict(),
            "ours": metrics[reference.metric]["value"] if reference.metric in metrics else totals[reference.metric],
            "does_not_compare": list(obstacles),
        }
        for reference in references
        if reference.split in (None, split) and reference.metric in {**metrics, **totals}
    ]
