"""One table and one figure over finished training runs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib import pyplot as plt

Metrics = list[dict]
WINDOW = 5
CURVES = {"reward": "mean reward", "entropy": "token entropy (nats)", "two_stage/coefficient": "entropy coefficient"}


@dataclass
class ReportArguments:
    """Compare training runs: figures on held-out rows, and entropy along the way."""

    runs: list[str] = field(
        metadata={
            "help": "Output folders of runs. Each has result.json, and metrics.jsonl if it was trained with GRPO."
        }
    )
    out: str = field(metadata={"help": "Folder for report.md and curves.png."})


def report(arguments: ReportArguments) -> None:
    """Print the table, and write it with the curves.

    Raises:
        ValueError: for a run without result.json, or runs evaluated on different benchmarks.
    """
    results = {Path(run).name: read_result(Path(run)) for run in arguments.runs}
    metrics = {Path(run).name: read_metrics(Path(run)) for run in arguments.runs}
    metrics = {name: lines for name, lines in metrics.items() if lines}
    if len(kinds := {(result["bench"], tuple(result["metrics"])) for result in results.values()}) > 1:
        raise ValueError(f"The runs were evaluated on different benchmarks: {', '.join(sorted(k for k, _ in kinds))}.")
    table = markdown_table(results, metrics)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(table, encoding="utf-8")
    plot_curves(metrics, out / "curves.png")
    print(table, end="")
    print(f"\nTable and curves are in {out}.")


def read_result(run: Path) -> dict:
    path = run / "result.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: evaluate the run first, with `eval run --out {run}`.")
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(run: Path) -> Metrics:
    """The log lines of a GRPO run; empty for a run that logged no entropy of completions."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [line for line in lines if "reward" in line]


def switch_step(metrics: dict[str, Metrics]) -> int | None:
    """Last logged step of stage 1 in the first two-stage run, None without one."""
    for lines in metrics.values():
        stage_1 = [line["step"] for line in lines if line.get("two_stage/stage") == 1]
        if stage_1:
            return stage_1[-1]
    return None


def entropy_at(lines: Metrics, step: int | None, *, window: int = WINDOW) -> float | None:
    """Mean entropy of the `window` log lines that end at `step`, in nats; the first lines for step 0."""
    if step is None:
        return None
    before = [line["entropy"] for line in lines if line["step"] <= step][-window:]
    return fmean(before or [line["entropy"] for line in lines][:window])


def markdown_table(results: dict[str, dict], metrics: dict[str, Metrics]) -> str:
    """A line per run: the two leading metrics of its evaluation, and its entropy at three moments."""
    switch = switch_step(metrics)
    names = list(next(iter(results.values()))["metrics"])[:2]
    header = [f"{names[0]} [95 %]", *names[1:], "entropy: start", f"at step {switch}", "end"]
    lines = [f"| run | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for name, result in results.items():
        run = metrics.get(name, [])
        steps = (0, switch, run[-1]["step"]) if run else (None, None, None)
        leading, *others = [result["metrics"][metric] for metric in names]
        interval = f"{_number(leading['value'])} [{_number(leading['low'])}, {_number(leading['high'])}]"
        figures = [interval, *(_number(other["value"]) for other in others)]
        entropies = [_number(entropy_at(run, step)) for step in steps]
        lines.append(f"| {name} | {' | '.join([*figures, *entropies])} |")
    return "\n".join(lines) + "\n"


def plot_curves(metrics: dict[str, Metrics], path: Path) -> None:
    """Reward, entropy and entropy coefficient of each run over its steps."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, len(CURVES), figsize=(5 * len(CURVES), 3.5), layout="constrained")
    for axis, (key, label) in zip(axes, CURVES.items(), strict=True):
        for name, lines in metrics.items():
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        if (switch := switch_step(metrics)) is not None:
            axis.axvline(switch, color="grey", linestyle=":", linewidth=1)
        axis.set(xlabel="optimizer step", ylabel=label)
        axis.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
