"""GRPO, the entropy-controlled methods and their baselines as subclasses of TRL's `GRPOTrainer`.

`METHODS` maps the names of `--method` to their classes; `get_method("a+b")` composes several. Each method is a file: a
formula in pure functions, the dataclass of its options, its trainer.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from vlm_entropy.data import torchvision_compat  # noqa: F401  must come before transformers

from .advantages import group_advantages
from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .calibrl import CalibrlConfig, CalibrlTrainer, exploration_term, log_prob_gap
from .clip_cov import ClipCovConfig, ClipCovTrainer
from .covariance import covariance
from .dapo import DapoConfig, DapoTrainer, informative_groups
from .ecvgpo import EcvgpoConfig, EcvgpoTrainer, group_reward_std, reshape_advantages
from .egt import EgtConfig, EgtTrainer, training_order
from .entropy_advantage import EntropyAdvantageConfig, EntropyAdvantageTrainer, entropy_advantage
from .entropy_minimisation import EntropyMinimisationConfig, EntropyMinimisationTrainer
from .entropy_reward import EntropyRewardConfig, EntropyRewardTrainer, entropy_reward
from .intuitor import IntuitorConfig, IntuitorTrainer, self_certainty
from .kl_cov import KlCovConfig, KlCovTrainer, kl_penalty, top_covariance
from .label_entropy import LabelEntropyConfig, LabelEntropyTrainer, label_entropy_loss
from .luffy import LuffyConfig, LuffyTrainer, luffy_term
from .methods import METHODS, Method, get_method
from .noisy_rollout import NoisyRolloutConfig, NoisyRolloutTrainer
from .presets import PRESETS, Preset
from .rl_plus import RlPlusConfig, RlPlusTrainer, rl_plus_term
from .rollouts import Rollout, Scored
from .saei import SaeiConfig, SaeiTrainer, perturb, select_tokens
from .sft import SupervisedConfig, SupervisedTrainer
from .two_stage import TwoStageConfig, TwoStageTrainer, entropy_coefficient, mean_entropy

__all__ = [
    "METHODS",
    "PRESETS",
    "CalibrlConfig",
    "CalibrlTrainer",
    "ClipCovConfig",
    "ClipCovTrainer",
    "DapoConfig",
    "DapoTrainer",
    "EcvgpoConfig",
    "EcvgpoTrainer",
    "EgtConfig",
    "EgtTrainer",
    "EntropyAdvantageConfig",
    "EntropyAdvantageTrainer",
    "EntropyGRPOConfig",
    "EntropyGRPOTrainer",
    "EntropyMinimisationConfig",
    "EntropyMinimisationTrainer",
    "EntropyRewardConfig",
    "EntropyRewardTrainer",
    "IntuitorConfig",
    "IntuitorTrainer",
    "KlCovConfig",
    "KlCovTrainer",
    "LabelEntropyConfig",
    "LabelEntropyTrainer",
    "LuffyConfig",
    "LuffyTrainer",
    "Method",
    "NoisyRolloutConfig",
    "NoisyRolloutTrainer",
    "Policy",
    "Preset",
    "RlPlusConfig",
    "RlPlusTrainer",
    "Rollout",
    "SaeiConfig",
    "SaeiTrainer",
    "Scored",
    "SupervisedConfig",
    "SupervisedTrainer",
    "TwoStageConfig",
    "TwoStageTrainer",
    "covariance",
    "entropy_advantage",
    "entropy_coefficient",
    "entropy_reward",
    "exploration_term",
    "get_method",
    "group_advantages",
    "group_reward_std",
    "informative_groups",
    "kl_penalty",
    "label_entropy_loss",
    "log_prob_gap",
    "luffy_term",
    "mean_entropy",
    "perturb",
    "reshape_advantages",
    "rl_plus_term",
    "select_tokens",
    "self_certainty",
    "top_covariance",
    "training_order",
]
