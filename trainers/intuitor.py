"""INTUITOR: the policy's self-certainty in place of rewards (arXiv 2505.19590)."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .advantages import check_one_sum, group_advantages
from .aggregation import response_mean
from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .rollouts import Rollout


def self_certainty(logits: Tensor) -> Tensor:
    """How far a next-token distribution p is from the uniform one, U.

    KL(U ‖ p) = -(1/V) Σ_v log(V · p_v) = logsumexp(z) - mean(z) - log V

    Source: the self-certainty of arXiv 2505.19590, section 3.

    Args:
        logits: (..., V) z.

    Returns:
        (...) in nats, ≥ 0, and 0 for the uniform distribution.
    """
    return logits.logsumexp(dim=-1) - logits.mean(dim=-1) - math.log(logits.size(-1))


@dataclass
class IntuitorConfig(EntropyGRPOConfig):
    """Options of INTUITOR: TRL's."""

    def __post_init__(self):
        super().__post_init__()
        check_one_sum(self, "intuitor")


class IntuitorTrainer(EntropyGRPOTrainer):
    """GRPO on the mean `self_certainty` of each response in place of the rewards, which are logged and train nothing.

    One forward more per rollout, without gradient, whose logits are kept for one micro-batch at a time.
    """

    args: IntuitorConfig
    config_class = IntuitorConfig

    def group_advantages(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> Tensor:
        policy = self.forward_rollout(rollout, model=_CertaintyHead(self.model, self.temperature))
        certainty = response_mean(policy.entropies, policy.mask)
        self.log_scalar("intuitor/self_certainty", certainty.mean())
        gathered = self.accelerator.gather(certainty)
        return self.local_rows(group_advantages(gathered, self.num_generations, scale=self.scale_rewards))


class _CertaintyHead(nn.Module):
    """A policy that answers TRL's question for the entropy of labelled positions with their self-certainty."""

    def __init__(self, model: Any, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(
        self, *, fused_lm_head: bool, labels: Tensor | None = None, shift_labels: Tensor | None = None, **inputs: Any
    ) -> SimpleNamespace:
        if shift_labels is None:
            assert labels is not None
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        is_labelled = (shift_labels != -100).any(dim=0)
        start = int(is_labelled.int().argmax())
        logits = self.model(**inputs, logits_to_keep=shift_labels.size(1) - start).logits.float()
        certainty = F.pad(self_certainty(logits / self.temperature), (start, 0))
        values = certainty if labels is None else certainty[:, :-1]
        return SimpleNamespace(log_probs=torch.zeros_like(values), entropy=values)
