"""The tables of a report: a line per run, a line per method over seeds, what differs between the runs' options."""

import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ..statistics import seed_spread
from .runs import OF_A_SEED, Curve, Metrics, Run

WINDOW = 5
LONGEST = 160
"""Characters of a cell at most."""

Table = dict[str, Any]
"""{"header": [str], "rows": [[str]]}"""


def switch_step(metrics: dict[str, Metrics]) -> int | None:
    """Last logged step of stage 1 in the first two-stage run, None without one."""
    for lines in metrics.values():
        stage_1 = [line["step"] for line in lines if line.get("two_stage/stage") == 1]
        if stage_1:
            return stage_1[-1]
    return None


def entropy_at(lines: Metrics, step: int | None, *, window: int = WINDOW) -> float | None:
    """Mean entropy of the `window` log lines that end at `step`, in nats; the first lines for step 0.

    None where no step is asked for, or where no entropy was logged.
    """
    logged = [line for line in lines if line.get("entropy") is not None]
    if step is None or not logged:
        return None
    before = [line["entropy"] for line in logged if line["step"] <= step][-window:]
    return fmean(before or [line["entropy"] for line in logged][:window])


def runs_table(runs: Sequence[Run]) -> Table:
    """A line per run: the two leading metrics of its evaluation, and its entropy at two moments or three."""
    switch = switch_step({run.name: run.metrics for run in runs})
    names = leading_metrics(runs)
    header = ["run", *(f"{name} [95 %]" if place == 0 else name for place, name in enumerate(names))]
    moments = ["entropy: start", *([] if switch is None else [f"at step {switch}"]), "end"]
    rows = []
    for run in runs:
        figures = [_figure(run, name, interval=place == 0) for place, name in enumerate(names)]
        last = run.metrics[-1]["step"] if run.metrics else None
        steps = [None if last is None else 0, *([] if switch is None else [last and switch]), last]
        rows.append([run.name, *figures, *(number(entropy_at(run.metrics, step)) for step in steps)])
    return {"header": [*header, *moments], "rows": rows}


def leading_metrics(runs: Sequence[Run]) -> list[str]:
    """The first two metrics that the evaluations have in common."""
    results = [run.result["metrics"] for run in runs if run.result is not None]
    return [name for name in (results[0] if results else ()) if all(name in result for result in results)][:2]


def _figure(run: Run, name: str, *, interval: bool) -> str:
    if run.result is None:
        return ""
    figure = run.result["metrics"][name]
    if interval and figure["value"] is not None:
        return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"
    return number(figure["value"])


def seeds_table(curves: Sequence[Curve]) -> Table | None:
    """Mean over seeds with its 95 % t interval, a line per method; None if no method has several evaluated seeds."""
    names = leading_metrics([run for curve in curves for run in curve.runs])
    rows = []
    for curve in curves:
        results = [run.result["metrics"] for run in curve.runs if run.result is not None]
        if len(results) > 1:
            spreads = [seed_spread([result[name]["value"] for result in results]) for name in names]
            cells = [f"{number(it.mean)} [{number(it.low)}, {number(it.high)}]" for it in spreads]
            rows.append([curve.label, str(len(results)), *cells])
    if not rows or not names:
        return None
    return {"header": ["method", "seeds", *(f"{name} [95 %, t]" for name in names)], "rows": rows}


def comparison_table(comparison: dict[str, Any]) -> Table:
    """The table of `comparison.json`, a line per method, label noise and metric."""
    columns = {
        "method": "method",
        "noise": "label noise",
        "metric": "metric",
        "mean": "mean",
        "spread": "spread",
        "paired_difference": "against GRPO",
        "low": "95 % from",
        "high": "to",
        "extra_tokens": "extra tokens",
        "extra_seconds": "extra seconds",
        "peak_memory_gib": "peak memory, GiB",
    }
    lines = [{**line, "peak_memory_gib": gib(line.get("peak_memory_bytes"))} for line in comparison.get("table", [])]
    rows = [[cell(line.get(name)) for name in columns] for line in lines]
    return {"header": list(columns.values()), "rows": rows}


def gib(size: float | None) -> float | None:
    return None if size is None else size / 2**30


def differences_table(curves: Sequence[Curve]) -> Table | None:
    """The options in which the curves differ, a column per curve; None unless two or more have options.

    What may differ inside a curve stands there only as its seeds.
    """
    known = [curve for curve in curves if curve.runs[0].options]
    if len(known) < 2:
        return None
    names = sorted({name for curve in known for name in curve.runs[0].options} - set(OF_A_SEED))
    rows = [["seed", *(", ".join(cell(run.options.get("seed")) for run in curve.runs) for curve in known)]]
    for name in names:
        values = [curve.runs[0].options.get(name) for curve in known]
        if any(value != values[0] for value in values):
            rows.append([name, *map(cell, values)])
    return {"header": ["option", *(curve.label for curve in known)], "rows": rows}


def cell(value: Any) -> str:
    """A value as the text of a cell: three decimals, long texts cut, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, float) and not value.is_integer() and math.isfinite(value):
        return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.3f}".rstrip("0")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"


def markdown(table: Table) -> str:
    """The table in Markdown; a bar in a cell is escaped, a line break becomes a blank."""
    lines = [table["header"], *table["rows"]]
    texts = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    head, *rows = [f"| {' | '.join(line)} |" for line in texts]
    return "\n".join([head, "|---" * len(table["header"]) + "|", *rows]) + "\n"
