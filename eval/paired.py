"""Two runs on the same items, and one number over seeds: `python -m vlm_entropy.eval paired` and `... spread`."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from .result_files import Values, check_same_benchmark, disagreements, figures, read_result, read_scores
from .statistics import (
    McNemar,
    Mean,
    PairedDifference,
    Spread,
    is_binary,
    mcnemar,
    mean_with_interval,
    paired_bootstrap,
    seed_spread,
)

_ORDER = re.compile(r"/(?:12|21)$")


@dataclass
class PairedArguments:
    """Compare two evaluated models item by item."""

    runs: list[str] = field(metadata={"help": "Two result folders of the same benchmark, first the baseline."})
    metric: str | None = field(default=None, metadata={"help": "Metric to compare. Default: the protocol's own."})
    seed: int = field(default=0, metadata={"help": "Of the bootstrap."})
    resamples: int = field(
        default=10_000,
        metadata={"help": "Resamples of the bootstrap; more make the ends of the interval less random."},
    )
    out: str | None = field(
        default=None, metadata={"help": "JSON file for the numbers. Default: they are only printed."}
    )


@dataclass
class SpreadArguments:
    """Mean and spread of every metric over runs that differ in their seed alone."""

    runs: list[str] = field(metadata={"help": "Result folders of the same benchmark, one per seed."})
    out: str | None = field(default=None, metadata={"help": "JSON file for the table. Default: it is only printed."})


class Comparison(NamedTuple):
    """Two runs on the same n items; `mcnemar` is None where values are not 0 or 1."""

    n: int
    first: Mean
    second: Mean
    difference: PairedDifference
    mcnemar: McNemar | None


def check_same_items(runs: Sequence[str], scores: Sequence[Mapping[str, Values]]) -> None:
    """Raise ValueError, naming it, if one of two runs lacks an item of the other."""
    for here, there in ((0, 1), (1, 0)):
        lonely = next((item for item in scores[here] if item not in scores[there]), None)
        if lonely is not None:
            raise ValueError(
                f"The item {lonely!r} is in {runs[here]} and not in {runs[there]}; both must have the same items."
            )


def item_values(run: str, scores: Mapping[str, Values], metric: str, items: Iterable[str]) -> dict[str, float]:
    """Return the values of a metric by item, in the order of `items`; NaN where the item cannot be judged.

    The two orders of a pair of responses, ids "7/12" and "7/21", are one item "7" with the mean of both: they are not
    independent, and an interval over them as two items would be wrong.

    Raises:
        ValueError: for an item without the metric.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if metric not in scores[item]:
            raise ValueError(f"{run} has no metric {metric!r} of item {item!r}; it has {', '.join(scores[item])}.")
        value = scores[item][metric]
        groups[_ORDER.sub("", item)].append(math.nan if value is None else value)
    return {item: fmean(values) for item, values in groups.items()}


def _write(out: str | None, content: Mapping[str, Any]) -> None:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def compare(first: Sequence[float], second: Sequence[float], *, seed: int, resamples: int) -> Comparison:
    """Compare the values of two runs, item by item."""
    means = [mean_with_interval(values, seed=seed, resamples=resamples) for values in (first, second)]
    difference = paired_bootstrap(first, second, seed=seed, resamples=resamples)
    test = mcnemar(first, second) if is_binary([*first, *second]) else None
    return Comparison(len(first), means[0], means[1], difference, test)


def _lines(runs: Sequence[str], compared: Comparison) -> list[str]:
    difference, test = compared.difference, compared.mcnemar
    lines = [
        f"{run}: {mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}] ({mean.interval})"
        for run, mean in zip(runs, (compared.first, compared.second))
    ]
    low, high = difference.low, difference.high
    lines.append(f"second - first: {difference.difference:+.4f} [{low:+.4f}, {high:+.4f}], p {difference.p_value:.4f}")
    if test is not None:
        lines.append(f"right in one alone: {test.first_only} and {test.second_only}, McNemar's p {test.p_value:.4f}")
    return lines


def paired(arguments: PairedArguments) -> None:
    """Print, and write if asked, the two means, their paired difference and, for values 0 and 1, McNemar's test.

    Raises:
        ValueError: unless there are two results of the same benchmark on the same items with the metric.
    """
    runs = arguments.runs
    if len(runs) != 2:
        raise ValueError(f"paired compares two runs, got {len(runs)}; `spread` takes any number of seeds.")
    results, scores = [read_result(run) for run in runs], [read_scores(run) for run in runs]
    check_same_benchmark(runs, results)
    check_same_items(runs, scores)
    metric = arguments.metric or next(iter(next(iter(scores[0].values()))))
    first, second = (item_values(run, items, metric, scores[0]) for run, items in zip(runs, scores))
    judged = [item for item in first if not math.isnan(first[item] + second[item])]
    if not judged:
        raise ValueError(f"No item has a value of {metric!r} in both runs.")
    options = {"seed": arguments.seed, "resamples": arguments.resamples}
    compared = compare([first[item] for item in judged], [second[item] for item in judged], **options)
    warned = disagreements(results)
    if len(judged) < len(first):
        warned.append(f"{len(first) - len(judged)} items that cannot be judged are left out")
    print(f"{results[0]['bench']}: {metric} of {compared.n} items")
    print("\n".join([*_lines(runs, compared), *(f"warning: {sentence}" for sentence in warned)]))
    content: dict[str, Any] = {"bench": results[0]["bench"], "metric": metric, "runs": runs, "n": compared.n}
    for name in ("first", "second", "difference", "mcnemar"):
        part = getattr(compared, name)
        content[name] = None if part is None else part._asdict()
    _write(arguments.out, content | options | {"warnings": warned})


def seed_table(runs: Sequence[str], results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Return the spread over runs of every figure of the first result.

    Raises:
        ValueError: for a figure that a run lacks, or could not judge.
    """
    columns = [figures(result) for result in results]
    table = {}
    for name in columns[0]:
        values = []
        for run, column in zip(runs, columns):
            value = column.get(name)
            if value is None:
                raise ValueError(f"{run} has no value of {name!r}, which {runs[0]} names.")
            values.append(value)
        table[name] = seed_spread(values)
    return table


def spread(arguments: SpreadArguments) -> None:
    """Print, and write if asked, mean, standard deviation, standard error and t interval of each metric over seeds.

    Raises:
        ValueError: for results of different benchmarks, a metric that one lacks, or the same folder twice.
    """
    runs = arguments.runs
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise ValueError(f"A folder comes twice in {', '.join(runs)}; each seed counts once.")
    results = [read_result(run) for run in runs]
    check_same_benchmark(runs, results)
    table, warned = seed_table(runs, results), disagreements(results)
    print("| metric | seeds | mean | std | standard error | 95 % t interval |\n|---|---|---|---|---|---|")
    for metric, row in table.items():
        cells = ["-" if number is None else f"{number:.4f}" for number in row[1:]]
        interval = "-" if row.low is None else f"[{cells[3]}, {cells[4]}]"
        print(f"| {metric} | {row.n} | {' | '.join(cells[:3])} | {interval} |")
    for sentence in warned:
        print(f"warning: {sentence}")
    metrics = {metric: row._asdict() for metric, row in table.items()}
    content = {"bench": results[0]["bench"], "runs": list(runs), "metrics": metrics, "warnings": warned}
    _write(arguments.out, content)
