"""The methods by name, and how several become one."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .calibrl import CalibrlConfig, CalibrlTrainer
from .ecvgpo import EcvgpoConfig, EcvgpoTrainer
from .noisy_rollout import NoisyRolloutConfig, NoisyRolloutTrainer
from .saei import SaeiConfig, SaeiTrainer
from .sft import SupervisedConfig, SupervisedTrainer
from .two_stage import TwoStageConfig, TwoStageTrainer


class Method(NamedTuple):
    """A trainer and the dataclass of its options."""

    trainer: Any
    config: Any


METHODS: dict[str, Method] = {
    "calibrl": Method(CalibrlTrainer, CalibrlConfig),
    "ecvgpo": Method(EcvgpoTrainer, EcvgpoConfig),
    "grpo": Method(EntropyGRPOTrainer, EntropyGRPOConfig),
    "noisy_rollout": Method(NoisyRolloutTrainer, NoisyRolloutConfig),
    "saei": Method(SaeiTrainer, SaeiConfig),
    "sft": Method(SupervisedTrainer, SupervisedConfig),
    "two_stage": Method(TwoStageTrainer, TwoStageConfig),
}


ONE_OWNER = {
    "sample": "how a group is sampled",
    "resample": "which groups are sampled again",
    "group_advantages": "what the advantages of a group are",
}
"""Hooks that at most one part of a combination may override."""


@functools.cache
def get_method(name: str) -> Method:
    """The method called `name`; "a+b" is a trainer with the hooks of both and the options of both.

    Raises:
        ValueError: for a name that is not in `METHODS`, or a combination with a method that has no hooks.
    """
    parts = name.split("+")
    for part in parts:
        if part not in METHODS:
            raise ValueError(f"Unknown method {part!r}; the methods are {', '.join(sorted(METHODS))}.")
    if len(parts) == 1:
        return METHODS[name]
    methods = [METHODS[part] for part in parts]
    if not all(issubclass(method.trainer, EntropyGRPOTrainer) for method in methods):
        raise ValueError(f"Method {name!r} combines trainers of different kinds; only GRPO methods compose.")
    if len(set(parts)) < len(parts):
        raise ValueError(f"Method {name!r} names a method twice.")
    for hook, what in ONE_OWNER.items():
        plain = getattr(EntropyGRPOTrainer, hook)
        owners = [part for part in parts if getattr(METHODS[part].trainer, hook) is not plain]
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(owners)} both decide {what}; choose one.")
    # The base comes last in a method resolution order, and contributes nothing that the others do not have.
    methods = [method for method in methods if method.trainer is not EntropyGRPOTrainer]
    label = "".join(method.trainer.__name__.removesuffix("Trainer") for method in methods)
    config: Any = dataclass(
        type(f"{label}Config", tuple(method.config for method in methods), {"__module__": __name__})
    )
    globals()[config.__name__] = config  # `Trainer` pickles its arguments, by the name of their class
    trainer = type(f"{label}Trainer", tuple(method.trainer for method in methods), {"config_class": config})
    return Method(trainer, config)
