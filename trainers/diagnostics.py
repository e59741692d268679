"""What a loss's own forward tells of kinds of tokens and answers: entropies, advantages, covariance; peak memory."""

import resource
import sys
from typing import Any

import torch
from torch import Tensor

from vlm_entropy.rewards.token_parts import PARTS, token_parts

from .rollouts import Rollout

CORRECT_ABOVE = 0.5
"""A completion is correct if its first reward is above this, as `accuracy@0.5` of the evaluation counts IoUs."""


def entropy_sums(entropies: Tensor, mask: Tensor, parts: Tensor, first_reward: Tensor) -> dict[str, Tensor]:
    """Σ H and the number of tokens of each part of the responses, and of correct and wrong responses.

    Args:
        entropies: (B, T) nats.
        mask: (B, T) bool, true = a real completion token.
        parts: (B, T) places in `PARTS`.
        first_reward: (B,) of the first reward function, NaN where it cannot judge.

    Returns:
        By metric (2,), detached; the number is 0 where there is no such token.
    """
    entropies = entropies.detach().float()
    of_row = first_reward.unsqueeze(1)
    chosen = {f"entropy/{part}": parts == place for place, part in enumerate(PARTS)}
    chosen |= {"entropy/correct": of_row > CORRECT_ABOVE, "entropy/wrong": of_row <= CORRECT_ABOVE}
    return {name: torch.stack([(entropies * which).sum(), which.sum()]) for name, which in _within(chosen, mask)}


def _within(chosen: dict[str, Tensor], mask: Tensor) -> list[tuple[str, Tensor]]:
    return [(name, (which & mask).float()) for name, which in chosen.items()]


def advantage_sums(sampled: Tensor, used: Tensor, logps: Tensor, mask: Tensor) -> Tensor:
    """(6,) Σ A, Σ log π, Σ A log π, Σ |A|, Σ |A'| and n over the real tokens, which `advantage_metrics` reads.

    Args:
        sampled: (B,) advantages A as sampled.
        used: (B,) or (B, T) advantages A' of the policy loss.
        logps: (B, T) nats.
        mask: (B, T) bool, true = a real completion token.
    """
    logps = logps.detach().float()
    sampled = sampled.detach().float().unsqueeze(1).expand_as(logps)
    used = used.detach().float()
    used = (used if used.dim() == 2 else used.unsqueeze(1)).expand_as(logps)
    values = (sampled, logps, sampled * logps, sampled.abs(), used.abs(), torch.ones_like(logps))
    return torch.stack([torch.where(mask, value, 0.0).sum() for value in values])


def advantage_metrics(sums: Tensor) -> dict[str, float]:
    """Means over tokens of |A| and |A'|, and the covariance of A and log π, E[A log π] - E[A] E[log π], in nats.

    A step of the policy gradient lowers entropy by the covariance: arXiv 2505.22617, Theorem 2.

    Args:
        sums: (6,) of `advantage_sums`, over any number of micro-batches; nothing comes of no tokens.
    """
    *totals, tokens = sums.tolist()
    if tokens == 0:
        return {}
    advantage, logp, product, size, used = (total / tokens for total in totals)
    covariance = product - advantage * logp
    return {"advantage/sampled_abs": size, "advantage/used_abs": used, "advantage/covariance": covariance}


def peak_memory(device: torch.device) -> float:
    """Most memory that this process has held so far, in GiB: of tensors on its GPU, or all of it on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Diagnostics:
    """Sums over the tokens of the losses since the last log line, which stay on the device until it is written.

    Args:
        processor: of the trainer, or its tokenizer.
    """

    def __init__(self, processor: Any):
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._pieces: dict[int, str] = {}
        self.sums: dict[str, Tensor] = {}

    def describe_rows(self, rollout: Rollout, rewards: Tensor) -> dict[str, Tensor]:
        """New entries of a rollout: the part of each token, and each row's first reward.

        Args:
            rollout: TRL's tensors of N rows.
            rewards: (N, K) unweighted rewards.
        """
        ids, mask = rollout["completion_ids"], rollout["completion_mask"]
        places = [self._places(row[:length]) for row, length in zip(ids.tolist(), mask.sum(dim=1).tolist())]
        padded = [row + [0] * (ids.size(1) - len(row)) for row in places]
        return {"token_parts": torch.tensor(padded, device=ids.device), "first_reward": rewards[:, 0].clone()}

    def _places(self, ids: list[int]) -> list[int]:
        known = self._pieces
        if missing := {token for token in ids if token not in known}:
            tokens = sorted(missing)
            known.update(zip(tokens, self._tokenizer.convert_ids_to_tokens(tokens), strict=True))
        return [PARTS.index(part) for part in token_parts([known[token] or "" for token in ids])]

    def add(self, rollout: Rollout, *, sampled: Tensor, logps: Tensor, entropies: Tensor, mask: Tensor) -> None:
        """Count one loss.

        Args:
            rollout: of the micro-batch, with the entries of `describe_rows` and the advantages that the loss uses.
            sampled: (B,) advantages as sampled.
            logps: (B, T) nats.
            entropies: (B, T) nats.
            mask: (B, T) bool, true = a real completion token.
        """
        first_reward = rollout["first_reward"]
        judged = (~first_reward.isnan()).float().sum()
        new = entropy_sums(entropies, mask, rollout["token_parts"], first_reward)
        new["accuracy"] = torch.stack([(first_reward > CORRECT_ABOVE).float().sum(), judged])
        new["advantages"] = advantage_sums(sampled, rollout["advantages"], logps, mask)
        self.sums = {name: value + self.sums.get(name, 0.0) for name, value in new.items()}

    def take(self, accelerator: Any) -> dict[str, float]:
        """The metrics since the last call, over all processes, which have to call this together."""
        if not self.sums:
            return {}
        names = list(self.sums)
        flat = accelerator.reduce(torch.cat([self.sums[name] for name in names]), reduction="sum")
        parts = dict(zip(names, flat.split([self.sums[name].numel() for name in names]), strict=True))
        self.sums = {}
        metrics = advantage_metrics(parts.pop("advantages"))
        for name, pair in parts.items():
            total, count = pair.tolist()
            if count > 0:
                metrics[name] = total / count
        return {**metrics, "memory/peak_gib": peak_memory(accelerator.device)}
