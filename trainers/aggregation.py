"""How TRL turns the numbers of tokens into one loss, for terms that are to weigh as the policy loss does."""

from typing import Any

import torch
from torch import Tensor


def response_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean of (B, T) values over the real tokens of each response, 0 for an empty one."""
    return torch.where(mask.bool(), values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def row_normalisers(
    mask: Tensor, *, loss_type: str, tokens_per_microbatch: Tensor, max_completion_length: int
) -> Tensor:
    """n_i of the policy loss Σ_i (1/n_i) Σ_t m_it · ℓ_it that TRL computes of a micro-batch.

    grpo, sapo:          B · len_i                     (mean over responses of the mean over tokens)
    bnpo:                Σ_i len_i                     (mean over the tokens of the micro-batch)
    dapo, cispo, vespo:  tokens_per_microbatch         (mean over the tokens of the rollout)
    dr_grpo:             B · max_completion_length
    luspo:               B

    Args:
        mask: (B, T) bool or 0/1, true = a real completion token.
        loss_type: TRL's.
        tokens_per_microbatch: 0-d, > 0; mean over the micro-batches of the rollout on all processes.
        max_completion_length: TRL's, tokens.

    Returns:
        (B,), > 0.

    Raises:
        ValueError: for a loss type whose normaliser is not known here.
    """
    rows, lengths = mask.size(0), mask.sum(dim=1)
    if loss_type in ("grpo", "sapo"):
        return rows * lengths.clamp(min=1)
    totals: dict[str, Any] = {
        "bnpo": lengths.sum().clamp(min=1),
        "dapo": tokens_per_microbatch,
        "cispo": tokens_per_microbatch,
        "vespo": tokens_per_microbatch,
        "dr_grpo": rows * max_completion_length,
        "luspo": rows,
    }
    if loss_type not in totals:
        raise ValueError(
            f"loss_type {loss_type!r} has no known normaliser; known are grpo, sapo, {', '.join(totals)}."
        )
    return torch.as_tensor(totals[loss_type], device=mask.device).expand(rows)


def aggregate(term: Tensor, mask: Tensor, normalisers: Tensor) -> Tensor:
    """Σ_i (1/n_i) Σ_t m_it · ℓ_it of a (B, T) term, Σ_i ℓ_i / n_i of a (B, 1) one.

    Dividing the one number of a sequence by the normaliser of its tokens is what keeps the two scales together: a sum
    of log-probs over len tokens pushes each of them as hard as the token form does. A mean pushes len times less.

    Args:
        term: (B, T) or (B, 1).
        mask: (B, T) bool or 0/1, true = a real completion token. A row without any counts as 0.
        normalisers: (B,) n_i.

    Returns:
        Scalar.
    """
    mask = mask.bool()
    valid = mask if term.shape == mask.shape else mask.any(dim=1, keepdim=True)
    return (torch.where(valid, term, 0.0).sum(dim=1) / normalisers).sum()
