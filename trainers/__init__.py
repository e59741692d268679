"""GRPO and the entropy-controlled methods as subclasses of TRL's `GRPOTrainer`.

`METHODS` maps the names of `--method` to their classes; `get_method("a+b")` composes several.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from vlm_entropy.data import torchvision_compat  # noqa: F401  must come before transformers

from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .calibrl import CalibrlConfig, CalibrlTrainer, exploration_term, log_prob_gap
from .ecvgpo import EcvgpoConfig, EcvgpoTrainer, group_reward_std, reshape_advantages
from .methods import METHODS, Method, get_method
from .noisy_rollout import NoisyRolloutConfig, NoisyRolloutTrainer
from .rollouts import Rollout, Scored
from .saei import SaeiConfig, SaeiTrainer, perturb, select_tokens
from .two_stage import TwoStageConfig, TwoStageTrainer, entropy_coefficient, mean_entropy

__all__ = [
    "METHODS",
    "CalibrlConfig",
    "CalibrlTrainer",
    "EcvgpoConfig",
    "EcvgpoTrainer",
    "EntropyGRPOConfig",
    "EntropyGRPOTrainer",
    "Method",
    "NoisyRolloutConfig",
    "NoisyRolloutTrainer",
    "Policy",
    "Rollout",
    "SaeiConfig",
    "SaeiTrainer",
    "Scored",
    "TwoStageConfig",
    "TwoStageTrainer",
    "entropy_coefficient",
    "exploration_term",
    "get_method",
    "group_reward_std",
    "log_prob_gap",
    "mean_entropy",
    "perturb",
    "reshape_advantages",
    "select_tokens",
]
