"""The curves of a report as a picture for a paper or a README."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

CURVES = {"reward": "mean reward", "entropy": "token entropy (nats)", "two_stage/coefficient": "entropy coefficient"}


def plot_curves(curves: dict[str, Any], path: Path) -> None:
    """Reward, entropy and entropy coefficient of each curve over its steps.

    Args:
        curves: of `curves.drawn`, and `switch`, the last step of a two-stage run's first stage, or None.
        path: of the PNG file.
    """
    charts = {chart["key"]: chart["lines"] for section in curves["sections"] for chart in section["charts"]}
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, len(CURVES), figsize=(5 * len(CURVES), 3.5), layout="constrained")
    for axis, (key, label) in zip(axes, CURVES.items(), strict=True):
        for place, line in enumerate(charts.get(key, [])):
            if line is not None:
                _draw(axis, curves["x"], line, label=curves["labels"][place], color=f"C{place}")
        if curves["switch"] is not None:
            axis.axvline(curves["switch"], color="grey", linestyle=":", linewidth=1)
        axis.set(xlabel="optimizer step", ylabel=label)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw(axis: Any, x: list[float], line: dict[str, list], *, label: str, color: str) -> None:
    steps = np.array(x)
    mean = np.array(line["mean"], dtype=np.float64)
    known = ~np.isnan(mean)
    # matplotlib leaves names that begin with an underscore out of a legend, and reads dollars as mathematics.
    axis.plot(steps[known], mean[known], label=label.lstrip("_").replace("$", r"\$"), color=color, linewidth=1)
    if "low" in line:
        low, high = (np.array(line[end], dtype=np.float64)[known] for end in ("low", "high"))
        axis.fill_between(steps[known], low, high, color=color, alpha=0.15, linewidth=0)
