"""GRPO and the entropy-controlled methods as subclasses of TRL's `GRPOTrainer`.

`METHODS` maps the names of `--method` to their classes; `get_method("a+b")` composes several.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from vlm_entropy.data import torchvision_compat  # noqa: F401  must come before transformers

from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy, Rollout
from .methods import METHODS, Method, get_method
from .two_stage import TwoStageConfig, TwoStageTrainer, entropy_coefficient, mean_entropy

__all__ = [
    "METHODS",
    "EntropyGRPOConfig",
    "EntropyGRPOTrainer",
    "Method",
    "Policy",
    "Rollout",
    "TwoStageConfig",
    "TwoStageTrainer",
    "entropy_coefficient",
    "get_method",
    "mean_entropy",
]
