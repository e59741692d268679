"""Evaluation of checkpoints on held-out rows, and reports over training runs."""

from .statistics import wilson_interval

__all__ = ["wilson_interval"]
