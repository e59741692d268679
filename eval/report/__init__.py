"""Runs side by side in one HTML file: `python -m vlm_entropy.eval report RUN [RUN ...]`."""

from .command import ReportArguments, report
from .tables import entropy_at, switch_step

__all__ = ["ReportArguments", "entropy_at", "report", "switch_step"]
