"""ECVGPO: control entropy by the self-information of the tokens of positive samples (arXiv 2512.06726)."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .advantages import per_token
from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .rollouts import Rollout, total_rewards

StdMode = Literal["sample", "population", "sum"]
Level = Literal["token", "sequence"]
Preset = Literal["qwen2_5_vl_3b", "internvl3_2b", "internvl3_8b"]

PRESETS: dict[str, dict[str, float]] = {
    "qwen2_5_vl_3b": {"r0": 10.0, "std_threshold": 0.1},
    "internvl3_2b": {"r0": 25.0, "std_threshold": math.inf},
    "internvl3_8b": {"r0": -50.0, "std_threshold": math.inf},
}
"""What the paper trained each model with; l0 is 25 everywhere."""


def group_reward_std(rewards: Tensor, num_generations: int, *, mode: StdMode = "sample") -> Tensor:
    """Standard deviation r_std of the rewards of each row's group.

    mode="sample":      sqrt(Σ_i (r_i - r̄)² / (n - 1))
    mode="population":  sqrt(Σ_i (r_i - r̄)² / n)
    mode="sum":         sqrt(Σ_i (r_i - r̄)²)

    Source: arXiv 2512.06726, Eq. 16, which prints the sum under the name of a standard deviation. The default is the
    form that the code the paper builds on computes for the advantages (Eq. 1).

    Args:
        rewards: (N,) total rewards, a group standing `num_generations` rows in a row; NaN = not judged, left out of
            its group.
        num_generations: G ≥ 1, rows per group.
        mode: which form.

    Returns:
        (N,) in reward units, the same number in all rows of a group; 0 for a group with fewer than two judged rows.

    Raises:
        ValueError: for another mode, or rows that do not fill their last group.
    """
    if rewards.numel() % num_generations:
        raise ValueError(f"{rewards.numel()} rewards are not whole groups of num_generations {num_generations}.")
    grouped = rewards.detach().view(-1, num_generations)
    judged = (~grouped.isnan()).sum(dim=1)
    divisors = {"sample": judged - 1, "population": judged, "sum": torch.ones_like(judged)}
    if mode not in divisors:
        raise ValueError(f"mode must be one of {', '.join(divisors)}, got {mode!r}.")
    squares = (grouped - grouped.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    return (squares / divisors[mode].clamp(min=1)).sqrt().repeat_interleave(num_generations)


def self_information(logps: Tensor, mask: Tensor | None = None, *, level: Level = "token") -> Tensor:
    """How unlikely the policy finds what it sampled, a constant for the gradient.

    level="token":     S_it = -log π_θ(y_t | x, y_<t)                 (arXiv 2512.06726, Eq. 15)
    level="sequence":  S_i = (1/len_i) Σ_t m_it · S_it, in every slot  (Eq. 14)

    Args:
        logps: (B, T) in nats.
        mask: (B, T) bool or 0/1, true = a real completion token; only the sequence level needs it.
        level: which of the two.

    Returns:
        (B, T) ≥ 0 in nats, detached. A row without a valid token has S_i = 0.

    Raises:
        ValueError: for another level, or the sequence level without a mask.
    """
    information = -logps.detach()
    if level == "token":
        return information
    if level != "sequence":
        raise ValueError(f"level must be 'token' or 'sequence', got {level!r}.")
    if mask is None:
        raise ValueError("level='sequence' takes the mean over real tokens and needs their mask, got None.")
    sums = torch.where(mask.bool(), information, 0.0).sum(dim=1, keepdim=True)
    return (sums / mask.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(logps)


def reshape_advantages(
    advantages: Tensor,
    logps: Tensor,
    reward_std: Tensor,
    *,
    r0: float,
    l0: float = 25.0,
    delta: float = math.inf,
    level: Level = "token",
    mask: Tensor | None = None,
    cap: float = math.inf,
) -> Tensor:
    """Advantages of positive samples, lowered (r0 > 0) or raised (r0 < 0) by the self-information S of each token.

    A'_it = max(A_i / l0, A_i - S_it / r0)  if A_i > 0 and r_std,i < δ
    A'_it = A_i                             otherwise

    A positive r0 takes reinforcement from improbable tokens, which lowers entropy; a negative one raises it; r0 → ±∞
    is plain GRPO. A positive sample stays positive.

    Source: arXiv 2512.06726, Eq. 17. Departures: the cases A_i = 0 and A_i > 0 with r_std,i ≥ δ, which Eq. 17 leaves
    open, keep A_i; the right side is read per token, as it is printed; A'_it ≤ cap · A_i is an addition, off by
    default.

    Args:
        advantages: (B,), or (B, T) where an earlier step made them differ by token; then A_it stands for A_i.
        logps: (B, T) log-probs of the sampled tokens under the current policy, in nats.
        reward_std: (B,) reward std of the row's group.
        r0: strength ≠ 0, in nats per unit of advantage: a larger |r0| does less. The paper uses 10, 25 and -50.
        l0: > 1; the floor A_i / l0 acts only for r0 > 0.
        delta: δ > 0 in reward units; groups with a larger spread are left alone.
        level: S_it of the token, or S_i of the whole response ("sequence").
        mask: (B, T) bool or 0/1, true = a real completion token; the others keep A_i. Without one all tokens are real,
            and the sequence level raises.
        cap: > 1, ceiling of A'_it / A_i; acts only for r0 < 0, where A' grows without bound as a token's probability
            falls to 0.

    Returns:
        (B, T), detached.

    Raises:
        ValueError: for shapes that do not fit together, r0 = 0, an unknown level, or a sequence level without a mask.
    """
    if r0 == 0:
        raise ValueError(f"r0 must not be 0, got {r0}.")
    rows = logps.shape[:1]
    if advantages.shape not in (rows, logps.shape) or reward_std.shape != rows:
        raise ValueError(
            f"logps {list(logps.shape)} need advantages of {list(rows)} or the same shape and reward_std of "
            f"{list(rows)}, got {list(advantages.shape)} and {list(reward_std.shape)}."
        )
    before = per_token(advantages, logps)
    penalty = self_information(logps, mask, level=level) / r0
    after = torch.maximum(before / l0, before - penalty)
    after = torch.minimum(after, cap * before)
    is_reshaped = (before > 0) & (reward_std[:, None] < delta)
    if mask is not None:
        is_reshaped &= mask.bool()
    return torch.where(is_reshaped, after, before)


def entropy_covariance(logps: Tensor, advantages: Tensor, mask: Tensor, *, means: Tensor | None = None) -> Tensor:
    """Covariance of log-prob and advantage over the tokens of a batch; a step lowers entropy where it is positive.

    Cov = (1/n) Σ (log π - mean log π) · (A - mean A), over the n valid tokens

    Source: arXiv 2512.06726, Eq. 8 (proved as Eq. 22): ΔH ≈ -η · Cov_{a~π}(log π(a), π(a) · A(a)) for a tabular
    policy. Departure: without the factor π(a), as in a natural-gradient step; then reshaping all tokens by -S / r0
    shifts it by Var(log π) / r0, which has the sign of r0.

    Args:
        logps, advantages: (B, T), log-probs in nats.
        mask: (B, T) bool or 0/1, true = a real completion token.
        means: (2,) mean log π and mean A; those of the batch by default. With the means of several batches, the mean
            of their results, each weighing by its tokens, is the covariance over all of them.

    Returns:
        Scalar, detached; 0 without a valid token.
    """
    valid = mask.bool()
    means = token_means(logps, advantages, mask=valid) if means is None else means
    product = (logps.detach() - means[0]) * (advantages.detach() - means[1])
    return token_means(product, mask=valid)[0]


def token_means(*values: Tensor, mask: Tensor, accelerator: Accelerator | None = None) -> Tensor:
    """(K,) means of K (B, T) values over the tokens where the (B, T) bool mask is true, detached; 0 without any.

    With an accelerator the tokens of all processes count, which call it together.
    """
    sums = torch.stack([*(torch.where(mask, x.detach(), 0.0).sum() for x in values), mask.sum()])
    if accelerator is not None:
        sums = accelerator.reduce(sums, reduction="sum")
    return sums[:-1] / sums[-1].clamp(min=1)


def reshape_metrics(
    before: Tensor,
    after: Tensor,
    logps: Tensor,
    mask: Tensor,
    is_numeric: Tensor,
    *,
    l0: float,
    cap: float = math.inf,
    accelerator: Accelerator | None = None,
) -> dict[str, Tensor]:
    """What the reshaping did to a batch, as (sum, count) pairs that can be added up over processes.

    Args:
        before, after: (B, T) advantages; positive samples are the tokens with `before` > 0.
        logps: (B, T) in nats.
        mask: (B, T) bool or 0/1, true = a real completion token.
        is_numeric: (B, T) bool, true = the token's text holds a digit.
        l0, cap: as in `reshape_advantages`.
        accelerator: of the trainer, for covariances over the tokens of all processes; those of this one without.

    Returns:
        (2,) each, mean = sum / count: shares `reshaped`, `at_floor` (and `at_cap` with a finite cap) of all valid
        tokens; `self_information` and `probability` of the tokens of positive samples, `numeric_probability` of the
        numeric ones (Fig. 4); `covariance_before` and `covariance_after`, see `entropy_covariance`.
    """
    valid, logps = mask.bool(), logps.detach()
    positive = valid & (before > 0)

    def pair(values: Tensor, among: Tensor) -> Tensor:
        return torch.stack([torch.where(among, values, 0.0).sum(), among.sum().to(values.dtype)]).float()

    mean_logp, *mean_advantages = token_means(logps, before, after, mask=valid, accelerator=accelerator)

    def covariance(advantages: Tensor, mean: Tensor) -> Tensor:
        means = torch.stack([mean_logp, mean])
        return pair(entropy_covariance(logps, advantages, valid, means=means).expand_as(logps), valid)

    metrics = {
        "reshaped": pair((after != before).float(), valid),
        "at_floor": pair((positive & (after == before / l0)).float(), valid),
        "self_information": pair(-logps, positive),
        "probability": pair(logps.exp(), positive),
        "numeric_probability": pair(logps.exp(), positive & is_numeric),
        "covariance_before": covariance(before, mean_advantages[0]),
        "covariance_after": covariance(after, mean_advantages[1]),
    }
    if math.isfinite(cap):
        metrics["at_cap"] = pair((positive & (after == cap * before)).float(), valid)
    return metrics


def numeric_token_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids of the tokens whose text holds a digit; special tokens have no text."""
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))], skip_special_tokens=True)
    return torch.tensor([index for index, text in enumerate(texts) if any(letter.isdigit() for letter in text)])


@dataclass
class EcvgpoConfig(EntropyGRPOConfig):
    """Options of ECVGPO, besides TRL's. Defaults: arXiv 2512.06726, Table 4.

    `std_threshold` is the paper's δ: `delta` is taken by TRL, for two-sided clipping.
    """

    preset: Preset | None = field(
        default=None,
        metadata={"help": f"The paper's r0 and std_threshold for {', '.join(PRESETS)}; options that are given win."},
    )
    r0: float | None = field(
        default=None,
        metadata={
            "help": "Advantage of a positive sample's token falls by its self-information / r0, in nats per unit of "
            "advantage. Positive lowers entropy, negative raises it, a larger |r0| does less; the paper uses 10, 25 "
            "and -50. Required without a preset."
        },
    )
    l0: float = field(
        default=25.0,
        metadata={"help": "Positive advantages keep at least 1 / l0 of themselves, > 1; larger lets r0 do more."},
    )
    std_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Only groups whose reward std lies below are reshaped, in reward units; larger reshapes more. "
            "inf (all groups) if neither this nor a preset is given."
        },
    )
    std_mode: StdMode = field(
        default="sample",
        metadata={
            "help": "Reward std over n - 1 ('sample'), over n ('population', smaller: reshapes more), or undivided "
            "('sum', as the paper prints it; larger: reshapes less)."
        },
    )
    level: Level = field(
        default="token",
        metadata={"help": "Self-information of each token, or the mean of its response ('sequence')."},
    )
    advantage_cap: float | None = field(
        default=None,
        metadata={
            "help": "With r0 < 0, advantages grow to at most this multiple of themselves, > 1; larger lets r0 do more "
            "(none: no bound)."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}.")
        for name, value in {"std_threshold": math.inf, **PRESETS.get(self.preset, {})}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.r0 is None:
            raise ValueError(f"r0 is missing: give a number, or one of the presets {', '.join(PRESETS)}.")
        if not math.isfinite(self.r0) or self.r0 == 0:
            raise ValueError(f"r0 must be a finite number other than 0, got {self.r0}.")
        if not (math.isfinite(self.l0) and self.l0 > 1):
            raise ValueError(f"l0 must be a finite number > 1, got {self.l0}.")
        if not self.std_threshold > 0:
            raise ValueError(f"std_threshold must be > 0 (inf is allowed), got {self.std_threshold}.")
        for name, choices in (("std_mode", get_args(StdMode)), ("level", get_args(Level))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        cap = self.advantage_cap
        if cap is not None and not (self.r0 < 0 and 1 < cap < math.inf):
            raise ValueError(
                f"advantage_cap must be a finite number > 1 and needs r0 < 0, got {cap} and r0 {self.r0}."
            )

    def reshaping(self) -> dict[str, Any]:
        """The keywords of `reshape_advantages`."""
        cap = math.inf if self.advantage_cap is None else self.advantage_cap
        return {"r0": self.r0, "l0": self.l0, "delta": self.std_threshold, "level": self.level, "cap": cap}


class EcvgpoTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is `reshape_advantages` between the group normalisation and the policy loss.

    The reward std is that of the group at rollout time; the self-information is that of the policy being updated.
    """

    args: EcvgpoConfig
    config_class = EcvgpoConfig

    @functools.cached_property
    def _numeric_ids(self) -> Tensor:
        processor: Any = self.processing_class
        return numeric_token_ids(getattr(processor, "tokenizer", processor))

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        totals = total_rewards(rewards, self.reward_weights.to(rewards.device))
        num_generations: Any = self.num_generations
        reward_std = group_reward_std(totals, num_generations, mode=self.args.std_mode)
        extra = super().prepare_rollout(rollout, examples, rewards)
        return {**extra, "group_reward_std": self.local_rows(reward_std)}

    def shape_advantages(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        before = per_token(super().shape_advantages(advantages, policy, rollout), policy.logps)
        options: dict[str, Any] = self.args.reshaping()
        after = reshape_advantages(before, policy.logps, rollout["group_reward_std"], mask=policy.mask, **options)
        is_numeric = torch.isin(rollout["completion_ids"], self._numeric_ids.to(before.device))
        bounds = {name: options[name] for name in ("l0", "cap")}
        parts = (before, after, policy.logps, policy.mask, is_numeric)
        self._log_means(reshape_metrics(*parts, **bounds, accelerator=self.accelerator))
        return after

    def _log_means(self, metrics: dict[str, Tensor]) -> None:
        """Log sum / count over all processes, and nothing where no token counts."""
        pairs = self.accelerator.reduce(torch.stack(list(metrics.values())), reduction="sum").tolist()
        for name, (total, count) in zip(metrics, pairs, strict=True):
            if count > 0:
                self.log_scalar(f"ecvgpo/{name}", total / count)
