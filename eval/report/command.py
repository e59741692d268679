"""The command `eval report`: a page, a table and a figure of runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .answers import Tip, completions, entropy_scale, predicted_answers, scored_answer, scored_lines
from .curves import drawn
from .figure import plot_curves
from .methods import changed_images, curation, curation_files, expert_gaps
from .page import render
from .pictures import Album
from .runs import Run, curves_of, read_object, read_runs
from .tables import comparison_table, differences_table, markdown, runs_table, seeds_table, switch_step


@dataclass
class ReportArguments:
    """Compare runs: one HTML file with curves, tables and answers to look at, and the table and curves for a paper."""

    runs: list[str] = field(
        metadata={
            "help": "Folders of runs, trained with GRPO (metrics.jsonl), evaluated (result.json) or both, or of an "
            "`eval compare`. Runs that differ in their seed alone make one curve."
        }
    )
    out: str = field(default="report", metadata={"help": "Folder for report.html, report.md and curves.png."})


def report(arguments: ReportArguments) -> None:
    """Write the page, the table and the figure, and print the table.

    Raises:
        ValueError: for a folder that holds no run, a file that cannot be read, or runs of different benchmarks.
    """
    runs = read_runs(arguments.runs)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(runs_table(runs))
    (out / "report.md").write_text(table, encoding="utf-8", errors="replace")
    page = contents(runs, arguments.runs)
    (out / "report.html").write_bytes(render(page))
    plot_curves(page["curves"], out / "curves.png")
    print(table, end="")
    print(f"\nOpen {out / 'report.html'} in a browser; report.md and curves.png are beside it.")


def contents(runs: Sequence[Run], folders: Sequence[str]) -> dict[str, Any]:
    """Everything on the page, as `templates/report.html` names it."""
    curves = curves_of(runs)
    names = [curve.label for curve in curves] + [run.name for run in runs if not run.metrics]
    comparisons = {folder: read_object(Path(folder) / "comparison.json") for folder in folders}
    return {
        "title": ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        "curves": {**drawn(curves), "switch": switch_step({run.name: run.metrics for run in runs})},
        "tables": {
            "Runs": runs_table(runs),
            "Mean over seeds": seeds_table(curves),
            **{f"Comparison {folder}": comparison_table(found) for folder, found in comparisons.items() if found},
        },
        "differences": differences_table(curves),
        **looks(runs),
    }


def looks(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs leave to look at: `runs`, a part for each, the `tips` of all tokens, and their `scale` in nats."""
    album = Album()
    tips: list[Tip] = []
    lines = scored_lines(runs)
    scale = entropy_scale(line for by_model in lines for of_model in by_model.values() for line in of_model)
    parts = [
        {
            "name": run.name,
            "scored": {
                model: [scored_answer(line, album, tips, scale=scale) for line in of_model]
                for model, of_model in by_model.items()
            },
            "predicted": predicted_answers(run, album),
            "completions": completions(run),
            "images": changed_images(run, album),
            "gaps": expert_gaps(run),
            "curations": [curation(*files) for files in curation_files(run)],
        }
        for run, by_model in zip(runs, lines, strict=True)
    ]
    return {"runs": parts, "tips": tips, "scale": scale}
