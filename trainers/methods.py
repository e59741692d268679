"""The methods and baselines by name, and how several become one."""

import copy
import functools
from dataclasses import Field, dataclass, fields
from typing import Any, NamedTuple

from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .calibrl import CalibrlConfig, CalibrlTrainer
from .clip_cov import ClipCovConfig, ClipCovTrainer
from .dapo import DapoConfig, DapoTrainer
from .ecvgpo import EcvgpoConfig, EcvgpoTrainer
from .egt import EgtConfig, EgtTrainer
from .entropy_advantage import EntropyAdvantageConfig, EntropyAdvantageTrainer
from .entropy_minimisation import EntropyMinimisationConfig, EntropyMinimisationTrainer
from .entropy_reward import EntropyRewardConfig, EntropyRewardTrainer
from .intuitor import IntuitorConfig, IntuitorTrainer
from .kl_cov import KlCovConfig, KlCovTrainer
from .label_entropy import LabelEntropyConfig, LabelEntropyTrainer
from .luffy import LuffyConfig, LuffyTrainer
from .noisy_rollout import NoisyRolloutConfig, NoisyRolloutTrainer
from .presets import PRESETS
from .rl_plus import RlPlusConfig, RlPlusTrainer
from .saei import SaeiConfig, SaeiTrainer
from .sft import SupervisedConfig, SupervisedTrainer
from .two_stage import TwoStageConfig, TwoStageTrainer


class Method(NamedTuple):
    """A trainer, the dataclass of its options, and what to say of it in a table."""

    trainer: Any
    config: Any
    source: str
    changes: str
    """What it changes in GRPO: data, sampling, reward, advantage or loss, and how."""
    extra_passes: str = "none"
    """Passes through the model beyond GRPO's."""


METHODS: dict[str, Method] = {
    "grpo": Method(EntropyGRPOTrainer, EntropyGRPOConfig, "arXiv 2402.03300, section 4.1", "nothing"),
    "two_stage": Method(
        TwoStageTrainer,
        TwoStageConfig,
        "arXiv 2511.07738, Algorithm 1",
        "loss: - c(τ) · H̄, c = +λ_max up to the switch and -λ_min after it",
    ),
    "ecvgpo": Method(
        EcvgpoTrainer,
        EcvgpoConfig,
        "arXiv 2512.06726, Eq. 17",
        "advantage of positive samples: max(A / l0, A - S / r0), S the token's self-information",
    ),
    "calibrl": Method(
        CalibrlTrainer,
        CalibrlConfig,
        "arXiv 2602.20197, Eqs. 8 and 9",
        "loss: + λ · |A| · LeakyReLU(-s · Δ), Δ the log-prob gap to an expert's response",
        "one forward of each prompt's expert",
    ),
    "saei": Method(
        SaeiTrainer,
        SaeiConfig,
        "arXiv 2512.10414",
        "sampling: part of each group from images attacked to raise entropy",
        "one forward and backward of the clean part",
    ),
    "egt": Method(
        EgtTrainer,
        EgtConfig,
        "arXiv 2602.01884, stage 3",
        "data: rows in ascending order of response entropy (column response_entropy), one pass",
    ),
    "noisy_rollout": Method(
        NoisyRolloutTrainer,
        NoisyRolloutConfig,
        "arXiv 2504.13055",
        "sampling: part of each group from images with random noise",
    ),
    "entropy_advantage": Method(
        EntropyAdvantageTrainer,
        EntropyAdvantageConfig,
        "arXiv 2506.14758",
        "advantage: + min(α · H, |A| / κ) on each token",
    ),
    "entropy_reward": Method(
        EntropyRewardTrainer,
        EntropyRewardConfig,
        "arXiv 2512.06726, Table 3 (our reading)",
        "reward: + c · mean token entropy of the response",
        "one forward of the rollout",
    ),
    "kl_cov": Method(
        KlCovTrainer,
        KlCovConfig,
        "arXiv 2505.22617, Eqs. 10, 13 and 14",
        "loss: + β · |log π - log π_old| on the tokens of highest covariance of A and log π; no clipping",
    ),
    "clip_cov": Method(
        ClipCovTrainer,
        ClipCovConfig,
        "arXiv 2505.22617, Eqs. 10 to 12",
        "loss: 0 for some tokens of high covariance of A and log π, drawn at random",
        "none off-policy; on-policy one forward of the rollout",
    ),
    "dapo": Method(
        DapoTrainer,
        DapoConfig,
        "arXiv 2503.14476, Eqs. 8, 11 and 13",
        "sampling: groups of equal rewards replaced by other prompts; loss: clip-higher, per token; reward: a soft "
        "limit of length, if asked for",
        "none; up to max_resamples samplings of the missing groups",
    ),
    "luffy": Method(
        LuffyTrainer,
        LuffyConfig,
        "arXiv 2504.14945, as CalibRL compares with it",
        "sampling: the last response of a group is an expert's; loss of its tokens: -A · p / (p + γ)",
        "none; one response less is sampled",
    ),
    "rl_plus": Method(
        RlPlusTrainer,
        RlPlusConfig,
        "arXiv 2508.00222, as CalibRL compares with it",
        "sampling as luffy; loss of the expert's tokens: -A · ρ · (1 - p)^γ, ρ = 2p / (p_old + (p_old + 1) / 2)",
        "none; one response less is sampled",
    ),
    "label_entropy": Method(
        LabelEntropyTrainer,
        LabelEntropyConfig,
        "arXiv 2511.07738, ablation",
        "loss: - c_i · H̄_i, its sign by whether the label is wrong (column is_noisy)",
    ),
    "intuitor": Method(
        IntuitorTrainer,
        IntuitorConfig,
        "arXiv 2505.19590",
        "reward: the response's mean self-certainty KL(U ‖ p), in place of all others",
        "one forward of the rollout",
    ),
    "entropy_minimisation": Method(
        EntropyMinimisationTrainer,
        EntropyMinimisationConfig,
        "arXiv 2505.20282",
        "loss: mean token entropy, in place of the policy loss; no reward",
    ),
    "sft": Method(
        SupervisedTrainer, SupervisedConfig, "", "supervised learning on a column of the data, for a warm start"
    ),
}

ONE_OWNER = {
    "sample": "how a group is sampled",
    "resample": "which groups are sampled again",
    "group_advantages": "what the advantages of a group are",
}
"""Hooks that at most one part of a combination may override."""

_SAMPLED = "{} would take the expert's response of {} for a sampled one"
_UNORDERED = "{} puts the data in order, and {} draws further prompts at random"
_UNREAD = "{} does not train on the rewards by which {} chooses groups"
REFUSED: dict[tuple[str, str], str] = {
    ("calibrl", "luffy"): _SAMPLED,
    ("calibrl", "rl_plus"): _SAMPLED,
    ("clip_cov", "luffy"): _SAMPLED,
    ("clip_cov", "rl_plus"): _SAMPLED,
    ("egt", "dapo"): _UNORDERED,
    ("entropy_minimisation", "dapo"): _UNREAD,
    ("intuitor", "dapo"): _UNREAD,
    ("kl_cov", "luffy"): _SAMPLED,
    ("kl_cov", "rl_plus"): _SAMPLED,
}
"""Other combinations that make no sense, and why."""


def split_name(name: str) -> list[str]:
    """The parts of "a+b".

    Raises:
        ValueError: for a part that is neither a method nor a preset, or that stands there twice.
    """
    parts = name.split("+")
    for part in parts:
        if part not in METHODS and part not in PRESETS:
            known = ", ".join(sorted([*METHODS, *PRESETS]))
            raise ValueError(f"Unknown method {part!r}; the methods are {known}.")
    if len(set(parts)) < len(parts):
        raise ValueError(f"Method {name!r} names a method twice.")
    return parts


def preset_options(name: str) -> dict[str, Any]:
    """Defaults that the presets among the parts of `name` set.

    Raises:
        ValueError: for two presets that set the same option to different values.
    """
    options: dict[str, Any] = {}
    for part in split_name(name):
        for option, value in PRESETS[part].options.items() if part in PRESETS else ():
            if options.setdefault(option, value) != value:
                raise ValueError(f"Method {name!r} sets {option} both to {options[option]!r} and to {value!r}.")
    return options


def get_method(name: str) -> Method:
    """The method called `name`; "a+b" is a trainer with the hooks of both and the options of both.

    A preset counts as its method; its options are those of `preset_options`.

    Raises:
        ValueError: for an unknown name, or a combination that makes no sense.
    """
    parts = split_name(name)
    methods = tuple(dict.fromkeys(PRESETS[part].method if part in PRESETS else part for part in parts))
    return METHODS[methods[0]] if len(methods) == 1 else _combine(methods)


@functools.cache
def _combine(parts: tuple[str, ...]) -> Method:
    name = "+".join(parts)
    if not all(issubclass(METHODS[part].trainer, EntropyGRPOTrainer) for part in parts):
        raise ValueError(f"Method {name!r} combines trainers of different kinds; only GRPO methods compose.")
    for pair, reason in REFUSED.items():
        if set(pair) <= set(parts):
            raise ValueError(f"{reason.format(*pair)}; choose one.")
    for hook, what in ONE_OWNER.items():
        plain = getattr(EntropyGRPOTrainer, hook)
        owners = [part for part in parts if getattr(METHODS[part].trainer, hook) is not plain]
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(owners)} both decide {what}; choose one.")
    # The base contributes nothing that the others do not have, and would have to come last.
    methods = [METHODS[part] for part in parts if METHODS[part].trainer is not EntropyGRPOTrainer]
    if len(methods) == 1:
        return methods[0]
    label = "".join(method.trainer.__name__.removesuffix("Trainer") for method in methods)
    changed = _changed_defaults(name, [method.config for method in methods])
    annotations = {option: field.type for option, field in changed.items()}
    members = {"__module__": __name__, "__annotations__": annotations, **changed}
    config: Any = dataclass(type(f"{label}Config", tuple(method.config for method in methods), members))
    globals()[config.__name__] = config  # `Trainer` pickles its arguments, by the name of their class
    trainer = type(f"{label}Trainer", tuple(method.trainer for method in methods), {"config_class": config})
    return Method(
        trainer,
        config,
        source="; ".join(method.source for method in methods),
        changes="; ".join(method.changes for method in methods),
        extra_passes="; ".join(method.extra_passes for method in methods),
    )


def _changed_defaults(name: str, configs: list[Any]) -> dict[str, Field]:
    """Options of GRPO to which one of the configs gives another default; inheritance would keep those of the first.

    Raises:
        ValueError: for two that change the same option in different ways.
    """
    plain = {field.name: field for field in fields(EntropyGRPOConfig)}
    changed: dict[str, Field] = {}
    for config in configs:
        for field in fields(config):
            if field.name not in plain or field.default == plain[field.name].default:
                continue
            default = changed.setdefault(field.name, copy.copy(field)).default
            if default != field.default:
                raise ValueError(f"Method {name!r} sets {field.name} both to {default!r} and to {field.default!r}.")
    return changed
