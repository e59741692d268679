"""What lies in the folder of a run: its log lines, its evaluation, its options; and which runs make one curve."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Metrics = list[dict[str, Any]]

OF_A_SEED = ("seed", "data_seed", "output_dir", "run_name", "hub_model_id", "resume_from_checkpoint")
"""Options in which the runs of one curve may differ."""


@dataclass(frozen=True)
class Run:
    """A folder, read."""

    name: str
    """The end of its path, as long as tells it from the others."""
    folder: Path
    metrics: Metrics
    """Log lines of a GRPO run in order, each with `tokens_per_second` where that is known; empty for other runs."""
    result: dict[str, Any] | None
    """`result.json` of its evaluation."""
    options: dict[str, Any]
    """`run_config.json`; empty for a run that has none."""
    cell: str | None = None
    """Method and label noise in a comparison: `method (50 % wrong labels)`."""


@dataclass(frozen=True)
class Curve:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[Run, ...]


def read_runs(folders: Sequence[str]) -> list[Run]:
    """The runs of the folders, those of a comparison in place of its own folder.

    Raises:
        ValueError: for a folder that holds no run, a file that cannot be read, or runs of different benchmarks.
    """
    cells = {path: cell for folder in folders for path, cell in _run_folders(Path(folder)).items()}
    paths = list(cells)
    runs = [
        Run(
            name,
            path,
            read_metrics(path),
            read_object(path / "result.json"),
            read_object(path / "run_config.json") or {},
            cells[path],
        )
        for name, path in zip(short_names(paths), paths, strict=True)
    ]
    for run in runs:
        _check(run)
    if len(kinds := {run.result["bench"] for run in runs if run.result is not None}) > 1:
        raise ValueError(f"The runs were evaluated on different benchmarks: {', '.join(sorted(kinds))}.")
    return runs


def _run_folders(folder: Path) -> dict[Path, str | None]:
    """The folders of runs that a folder stands for, each with its cell of a comparison."""
    if not folder.is_dir():
        raise ValueError(f"The run {str(folder)!r} is no folder.")
    comparison = read_object(folder / "comparison.json")
    if comparison is None:
        return {folder: None}
    several = len({cell["noise"] for cell in comparison["cells"]}) > 1
    return {
        Path(cell["run"]): f"{cell['method']} ({cell['noise']:.0%} wrong labels)" if several else str(cell["method"])
        for cell in comparison["cells"]
        if Path(cell["run"]).is_dir()
    }


def _check(run: Run) -> None:
    others = ("entropy/tokens.jsonl", "predictions.jsonl", "*.report.json")
    if run.result is None and not run.metrics and not any(path for name in others for path in run.folder.glob(name)):
        raise ValueError(
            f"{run.folder / 'result.json'} is missing: evaluate the run first, with `eval run --out {run.folder}`, or "
            "train it: there is no metrics.jsonl of GRPO either."
        )


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths, whole parts each and equally many, that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(of_path[-length:]) for of_path in parts]
        if len(set(names)) == len(names):
            break
    return names if paths else []


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, None if there is no such file.

    Raises:
        ValueError: if it holds something else.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of the complete lines of a file, none if there is no such file.

    Raises:
        ValueError: for a line that is no JSON object.
    """
    if not path.is_file():
        return []
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}.") from error
        if not isinstance(lines[-1], dict):
            raise ValueError(f"{path}:{number} must hold a JSON object, not {type(lines[-1]).__name__}.")
    return lines


def read_metrics(folder: Path) -> Metrics:
    """The log lines of a GRPO run; empty for a run that logged no reward."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "reward" in line]
    return with_throughput(lines)


def with_throughput(lines: Metrics) -> Metrics:
    """The lines, each with `tokens_per_second` = new tokens / (new steps · mean seconds of a step), where known.

    The tokens are those of prompts and completions, of all processes, as TRL counts them in `num_tokens`.
    """
    step, tokens = 0, 0
    result = []
    for line in lines:
        seconds = line.get("step_time")
        seen = line.get("num_tokens")
        steps = line["step"] - step
        if seconds and seen is not None and steps > 0:
            line = {**line, "tokens_per_second": (seen - tokens) / (steps * seconds)}
        step, tokens = line["step"], tokens if seen is None else seen
        result.append(line)
    return result


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """The runs with a log, those together whose options are the same but for `OF_A_SEED`; in order of their first run.

    The runs of a comparison belong together by method and label noise. A run without `run_config.json` is a curve of
    its own. The label is that of the comparison, or the method where runs were put together by their options and it
    tells the curves apart, else the name of the first run.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics:
            options = {name: value for name, value in run.options.items() if name not in OF_A_SEED}
            key = run.cell or (json.dumps(options, sort_keys=True) if options else str(run.folder))
            groups.setdefault(key, []).append(run)
    curves = list(groups.values())
    methods = [of_curve[0].cell or str(of_curve[0].options.get("method", "")) for of_curve in curves]
    several = any(len(of_curve) > 1 for of_curve in curves)
    told = several and all(methods) and len(set(methods)) == len(methods)
    names = methods if told else [of_curve[0].name for of_curve in curves]
    return [
        Curve(f"{name} ({len(of_curve)} seeds)" if len(of_curve) > 1 else name, tuple(of_curve))
        for name, of_curve in zip(names, curves, strict=True)
    ]
