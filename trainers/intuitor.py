"""INTUITOR: the policy's self-certainty in place of rewards (arXiv 2505.19590)."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

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
        length = rollout["completion_ids"].size(1)
        policy = self.forward_rollout(rollout, model=_CertaintyHead(self.model, length, self.temperature))
        certainty = response_mean(policy.entropies, policy.mask)
        self.log_scalar("intuitor/self_certainty", certainty.mean())
        gathered = self.accelerator.gather(certainty)
        return self.local_rows(group_advantages(gathered, self.num_generations, scale=self.scale_rewards))


class _CertaintyHead:
    """A policy that answers TRL's question for the entropy of the last positions with their self-certainty."""

    def __init__(self, model: Any, length: int, temperature: float):
        self.model, self.length, self.temperature = model, length, temperature

    def __call__(self, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        logits = self.model(**inputs, logits_to_keep=self.length + 1).logits[:, :-1].float()
        certainty = self_certainty(logits / self.temperature)
        return SimpleNamespace(log_probs=torch.zeros_like(certainty), entropy=certainty)
