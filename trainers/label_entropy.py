"""Entropy raised on prompts with a wrong label and lowered on the others, or the reverse (arXiv 2511.07738)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from torch import Tensor

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row

from .aggregation import response_mean
from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .rollouts import Rollout

Labels = Literal["false", "true"]


def label_entropy_loss(entropies: Tensor, mask: Tensor, is_raised: Tensor, *, coefficient: float) -> Tensor:
    """Entropy loss whose sign depends on the row.

    L = -(1/B) Σ_i c_i · (1/len_i) Σ_t m_it · H_it,   c_i = +c for a row to raise, -c for the others

    Source: the ablations "LF.Max LT.Min" and the reverse of arXiv 2511.07738, with the mean of its L_entropy.

    Args:
        entropies: (B, T) in nats; gradients flow through.
        mask: (B, T) bool or 0/1, true = a real completion token.
        is_raised: (B,) bool.
        coefficient: c ≥ 0, reward units per nat.

    Returns:
        Scalar.
    """
    signs = torch.where(is_raised, 1.0, -1.0).to(entropies.dtype)
    return -coefficient * (signs * response_mean(entropies, mask)).mean()


@dataclass
class LabelEntropyConfig(EntropyGRPOConfig):
    """Options of the label ablations, besides TRL's. The data needs a column `is_noisy`, as `noise` writes it."""

    raise_on: Labels = field(
        default="false",
        metadata={
            "help": "Entropy is raised on prompts whose label is wrong ('false', the paper's LF.Max LT.Min) or right "
            "('true'), and lowered on the others."
        },
    )
    label_entropy_coef: float = field(
        default=0.01,
        metadata={"help": "Coefficient c >= 0 of the mean token entropy, reward units per nat; 0 is GRPO."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.raise_on not in get_args(Labels):
            raise ValueError(f"raise_on must be one of {', '.join(get_args(Labels))}, got {self.raise_on!r}.")
        if not (math.isfinite(self.label_entropy_coef) and self.label_entropy_coef >= 0):
            raise ValueError(f"label_entropy_coef must be a finite number >= 0, got {self.label_entropy_coef}.")

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        check_noise_column(dataset)
        return super().prepare_dataset(rows, dataset, family=family, processor=processor, reward_names=reward_names)


def check_noise_column(dataset: Dataset) -> None:
    """Raise `ValueError` unless every row says whether its label is wrong."""
    if "is_noisy" not in dataset.column_names:
        raise ValueError(f"label_entropy needs the column 'is_noisy'; the data has {sorted(dataset.column_names)}.")
    unknown = [row for row, value in enumerate(dataset["is_noisy"]) if not isinstance(value, bool)]
    if unknown:
        raise ValueError(
            f"is_noisy of row {unknown[0] + 1} is {dataset['is_noisy'][unknown[0]]!r}, not true or false."
        )


class LabelEntropyTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is `label_entropy_loss`: an upper bound on what knowing the wrong labels is worth."""

    args: LabelEntropyConfig
    config_class = LabelEntropyConfig

    def __init__(self, model: Any, reward_funcs: Any = None, args: LabelEntropyConfig | None = None, **kwargs: Any):
        super().__init__(model, reward_funcs, args, **kwargs)
        if isinstance(self.train_dataset, Dataset):
            check_noise_column(self.train_dataset)

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        extra = super().prepare_rollout(rollout, examples, rewards)
        is_noisy = torch.tensor([example["is_noisy"] for example in examples], device=self.accelerator.device)
        self.log_scalar("label_entropy/noisy", is_noisy.float().mean())
        return {**extra, "is_raised": is_noisy == (self.args.raise_on == "false")}

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        loss = label_entropy_loss(
            policy.entropies, policy.mask, rollout["is_raised"], coefficient=self.args.label_entropy_coef
        )
        return super().extra_loss(policy, rollout) + loss
