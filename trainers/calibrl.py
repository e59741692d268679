"""CalibRL: GRPO with an expert as a yardstick for each response, not as a target (arXiv 2602.20197)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row
from vlm_entropy.rewards import REWARDS

from .base import EntropyGRPOTrainer, Policy
from .experts import ExpertConfig, expert_token_ids, group_owners, pad_completions, tokenizer_of
from .rollouts import Rollout

DeltaMode = Literal["token", "sequence_sum", "sequence_mean"]
Activation = Literal["leaky_relu", "relu", "sigmoid", "tanh", "huber"]
Baseline = Literal["expert", "reference"]
CHOICES = {"activation": Activation, "delta_mode": DeltaMode, "baseline": Baseline}


def log_prob_gap(
    logps: Tensor, mask: Tensor, expert_logps: Tensor, expert_mask: Tensor, *, mode: DeltaMode = "token"
) -> Tensor:
    """How much more likely the policy finds its own response than the expert's, Δ, differentiable in `logps` only.

    mode="token":          Δ_it = log π(y_it) - log π(e_it), position by position
    mode="sequence_sum":   Δ_i  = Σ_t log π(y_it) - Σ_t log π(e_it)
    mode="sequence_mean":  Δ_i  = (1/|y_i|) Σ_t log π(y_it) - (1/|e_i|) Σ_t log π(e_it)

    Source: arXiv 2602.20197, Eq. 8 (sequence_sum) and Table 12 (sequence_mean). The authors' code computes the token
    form, the default here: past its end an expert counts as 0, and what is left of a longer expert is ignored.

    Args:
        logps: (B, T) of the sampled tokens, nats.
        mask: (B, T) bool or 0/1, true = a real completion token.
        expert_logps: (B, Te) of the expert's tokens, nats; detached.
        expert_mask: (B, Te) bool or 0/1, true = a real token. A row without any compares with 0 in all modes.
        mode: which gap.

    Returns:
        (B, T), 0 where `mask` is false; (B, 1) for the sequence modes, 0 for an empty response.

    Raises:
        ValueError: for another mode.
    """
    mask, expert_mask = mask.bool(), expert_mask.bool()
    own = torch.where(mask, logps, 0.0)
    expert = torch.where(expert_mask, expert_logps.detach(), 0.0)
    if mode == "token":
        # A negative padding cuts.
        return torch.where(mask, own - F.pad(expert, (0, own.size(1) - expert.size(1))), 0.0)
    own, expert = own.sum(dim=1), expert.sum(dim=1)
    if mode == "sequence_mean":
        own, expert = own / mask.sum(dim=1).clamp(min=1), expert / expert_mask.sum(dim=1).clamp(min=1)
    elif mode != "sequence_sum":
        raise ValueError(f"mode must be one of {', '.join(get_args(DeltaMode))}, got {mode!r}.")
    return torch.where(mask.any(dim=1), own - expert, 0.0).unsqueeze(1)


def huber(x: Tensor) -> Tensor:
    """0 for x ≤ 0, x²/2 up to 1, x - 1/2 beyond.

    Our reading of the "Huber" of arXiv 2602.20197, Table 7, which prints no formula and says that it cuts off negative
    values.
    """
    return torch.where(x < 1, x.clamp(min=0) ** 2 / 2, x - 0.5)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "huber": huber,
}
"""The activations of arXiv 2602.20197, Table 7, that have no slope."""


def exploration_term(
    gap: Tensor,
    correct: Tensor,
    advantages: Tensor,
    *,
    negative_slope: float = 0.5,
    activation: Activation = "leaky_relu",
) -> Tensor:
    """CalibRL's term, to be minimised: raises correct responses, lowers wrong ones, harder before Δ changes sign.

    ℓ = |A| · LeakyReLU(-s · Δ, α),   s = +1 for a correct response, -1 for a wrong one

    | s  | Δ  | slope dℓ/dΔ  | pushes log π |                      | s  | Δ  | slope dℓ/dΔ  | pushes log π |
    | +1 | <0 | -|A|         | up           |                      | -1 | >0 | +|A|         | down         |
    | +1 | >0 | -α·|A|       | up           |                      | -1 | <0 | +α·|A|       | down         |

    Source: arXiv 2602.20197, Eq. 9. At Δ = 0 the slope is the weak one, α.

    Args:
        gap: (B, T) or (B, 1) Δ of `log_prob_gap`, nats.
        correct: (B,) bool or 0/1.
        advantages: (B,) A; detached.
        negative_slope: α, 0 to 1; larger pushes harder past the expert.
        activation: another function of -s · Δ, which has no slope to set (Table 7).

    Returns:
        Like `gap`, in reward units × nats; all 0 in a row with A = 0.
    """
    sign = torch.where(correct.bool(), 1.0, -1.0).to(gap.dtype)
    x = -sign.unsqueeze(1) * gap
    bent = F.leaky_relu(x, negative_slope) if activation == "leaky_relu" else ACTIVATIONS[activation](x)
    return advantages.detach().abs().unsqueeze(1) * bent


@dataclass
class CalibrlConfig(ExpertConfig):
    """Options of CalibRL, besides TRL's. Defaults: arXiv 2602.20197 and its authors' code.

    To match that code: `loss_type` dapo or bnpo, `scale_rewards` "none", no KL term.
    """

    exploration_weight: float = field(
        default=0.1,
        metadata={"help": "Weight λ ≥ 0 of the exploration term in the loss; 0 is GRPO."},
    )
    negative_slope: float = field(
        default=0.5,
        metadata={
            "help": "Slope α of LeakyReLU, 0 to 1: the force left once a response has crossed the expert's level; "
            "larger pushes further."
        },
    )
    activation: Activation = field(
        default="leaky_relu",
        metadata={"help": "Function of the gap: leaky_relu, or relu, sigmoid, tanh, huber of the paper's Table 7."},
    )
    delta_mode: DeltaMode = field(
        default="token",
        metadata={
            "help": "Log-prob gap per token, position by position ('token', the authors' code), of sums over the "
            "response ('sequence_sum', the paper), or of means ('sequence_mean', a force smaller by the length)."
        },
    )
    baseline: Baseline = field(
        default="expert",
        metadata={
            "help": "What a response is compared with: the expert's log-probs, or the reference model's of the same "
            "response (Table 8). The latter needs --beta > 0, with which TRL loads the reference and adds a KL term "
            "of that weight; 1e-8 is as good as none."
        },
    )
    correct_reward: str | None = field(
        default=None,
        metadata={"help": "Reward that decides whether a response is correct (default: the weighted sum of all)."},
    )
    correct_threshold: float = field(
        default=0.1,
        metadata={"help": "A response is correct if that reward is above this; larger calls fewer correct."},
    )
    save_expert_gaps: int = field(
        default=0,
        metadata={
            "help": "Write the gap of one response, token by token, to <output_dir>/expert_gaps.jsonl every this many "
            "optimizer steps; 0 writes none."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.exploration_weight) and self.exploration_weight >= 0):
            raise ValueError(f"exploration_weight must be a finite number >= 0, got {self.exploration_weight}.")
        if not 0 <= self.negative_slope <= 1:
            raise ValueError(f"negative_slope must lie in [0, 1], got {self.negative_slope}.")
        if self.save_expert_gaps < 0:
            raise ValueError(f"save_expert_gaps must be >= 0, got {self.save_expert_gaps}.")
        if not math.isfinite(self.correct_threshold):
            raise ValueError(f"correct_threshold must be a finite number, got {self.correct_threshold}.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}.")
        if self.activation != "leaky_relu" and self.negative_slope != CalibrlConfig.negative_slope:
            raise ValueError(
                f"activation={self.activation!r} has no negative_slope to set (got {self.negative_slope})."
            )
        if self.max_completion_length is None:
            raise ValueError("calibrl cuts experts to max_completion_length, which must be a number, got None.")
        if self.baseline == "expert" and not self.expert_column:
            raise ValueError("calibrl needs expert_column: the name of the column with the expert's response.")
        if self.baseline == "reference" and self.expert_column:
            raise ValueError(
                f"baseline='reference' uses no expert: leave expert_column out (got {self.expert_column!r})."
            )
        if self.baseline == "reference" and self.beta == 0:
            raise ValueError(
                "baseline='reference' needs beta > 0, with which TRL loads the reference model; 1e-8 is as good as no "
                "KL term."
            )
        if self.top_entropy_quantile < 1 or self.off_policy_mask_threshold is not None:
            raise ValueError(
                "calibrl's term acts on all tokens: leave top_entropy_quantile at 1 and off_policy_mask_threshold off "
                f"(got {self.top_entropy_quantile} and {self.off_policy_mask_threshold})."
            )

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        self.correct_column(reward_names)
        return super().prepare_dataset(rows, dataset, family=family, processor=processor, reward_names=reward_names)

    def correct_column(self, reward_names: Sequence[str]) -> int | None:
        """Which of the rewards decides on correctness, by its place; None for their weighted sum.

        Raises:
            ValueError: if there is no such reward, or if the sum can be above the threshold without the main reward
                (rewards being at most 1), so that a wrong answer in the right format would count as correct.
        """
        names = list(reward_names)
        if self.correct_reward is not None:
            known = REWARDS.get(self.correct_reward)
            name = self.correct_reward if known is None else known.__name__
            if name not in names:
                raise ValueError(f"correct_reward {self.correct_reward!r} is none of the rewards {', '.join(names)}.")
            return names.index(name)
        weights = sorted(self.reward_weights or [1.0] * len(names))
        if sum(weights[:-1]) > self.correct_threshold:
            raise ValueError(
                f"With weights {weights} of the rewards {', '.join(names)} a wrong answer can score above "
                f"correct_threshold {self.correct_threshold}: name the reward that decides in correct_reward."
            )
        return None


def check_experts(config: CalibrlConfig, dataset: Dataset, processor: Any, reward_names: Sequence[str]) -> None:
    """Check CalibRL's options against the data and the rewards, before a model loads.

    Raises:
        ValueError: one sentence on the first thing that is wrong.
    """
    config.correct_column(reward_names)
    if config.baseline == "expert":
        config.check_expert_data(dataset, processor)


class CalibrlTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is the term +λ · Σ_i (1/n_i) Σ_t m_it · |A_i| · LeakyReLU(-s_i · Δ_it) in the loss.

    Δ is `log_prob_gap`, the term `exploration_term`, n_i the policy loss's own `row_normalisers`. A is TRL's advantage
    as sampled, whatever another method makes of it for the policy loss. The expert's log-probs are those of the policy
    at sampling time, and stay fixed over the updates of a rollout: one forward without gradient per prompt. The expert
    enters neither the group's statistics nor the policy loss, and the term has no ratio, clipping or importance
    correction of a sampler (Eq. 10). A row without an expert, or without a verdict on its correctness, has no term.
    """

    args: CalibrlConfig
    config_class = CalibrlConfig

    def __init__(self, model: Any, reward_funcs: Any = None, args: CalibrlConfig | None = None, **kwargs: Any):
        super().__init__(model, reward_funcs, args, **kwargs)
        self._correct_column = self.args.correct_column(self.reward_func_names)
        self._gap_saved_at = 0
        if isinstance(self.train_dataset, Dataset):
            check_experts(self.args, self.train_dataset, self.processing_class, self.reward_func_names)

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        extra = super().prepare_rollout(rollout, examples, rewards)
        verdict = self.local_rows(self._verdict(rewards))
        counts = ~verdict.isnan()
        if self.args.baseline == "expert":
            experts = self._score_experts(rollout, examples)
            counts = counts & experts["expert_mask"].any(dim=1)
            extra |= experts
        correct = verdict > self.args.correct_threshold
        self.log_scalar("calibrl/correct", correct.float().mean())
        return {**extra, "correct": correct, "exploration_advantages": rollout["advantages"] * counts}

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        gap = self._gap(policy, rollout)
        self._save_gap(gap.detach(), policy, rollout)
        term = exploration_term(
            gap,
            rollout["correct"],
            rollout["exploration_advantages"],
            negative_slope=self.args.negative_slope,
            activation=self.args.activation,
        )
        loss = self.aggregate_as_policy_loss(term, policy, rollout)
        self.log_scalar("calibrl/term", loss)
        return super().extra_loss(policy, rollout) + self.args.exploration_weight * loss

    def _gap(self, policy: Policy, rollout: Rollout) -> Tensor:
        if self.args.baseline == "reference":
            baseline, baseline_mask = rollout["ref_per_token_logps"], policy.mask
        else:
            baseline, baseline_mask = rollout["expert_logps"], rollout["expert_mask"]
        gap = log_prob_gap(policy.logps, policy.mask, baseline, baseline_mask, mode=self.args.delta_mode)
        compared = policy.mask & baseline_mask.any(dim=1, keepdim=True)
        if self.args.delta_mode != "token":
            compared = compared.any(dim=1, keepdim=True)
        self.log_ratio("calibrl/gap", gap.detach()[compared].sum(), compared.sum())
        return gap

    def _save_gap(self, gap: Tensor, policy: Policy, rollout: Rollout) -> None:
        """Append the first response of the micro-batch that has a gap to `expert_gaps.jsonl`, once in a due step."""
        step, every = self.state.global_step + 1, self.args.save_expert_gaps
        if not every or step % every or step == self._gap_saved_at or not self.accelerator.is_main_process:
            return
        rows = gap.ne(0).any(dim=1).nonzero().flatten().tolist()
        if not rows:
            return
        row, tokenizer = rows[0], tokenizer_of(self.processing_class)
        kept = policy.mask[row]
        line = {
            "step": step,
            "tokens": [tokenizer.decode([token]) for token in rollout["completion_ids"][row][kept].tolist()],
            "gap": (gap[row] if gap.size(1) == 1 else gap[row][kept]).tolist(),
            "advantage": rollout["exploration_advantages"][row].item(),
            "correct": bool(rollout["correct"][row]),
        }
        with (Path(self.args.output_dir or ".") / "expert_gaps.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._gap_saved_at = step

    def _verdict(self, rewards: Tensor) -> Tensor:
        """Reward of each row that decides on its correctness; NaN where the one that should decide cannot judge."""
        if self._correct_column is not None:
            return rewards[:, self._correct_column]
        return (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)

    def _score_experts(self, rollout: Rollout, examples: list[dict]) -> dict[str, Tensor]:
        """Log-probs and mask of each row's expert, from one forward per prompt; an empty mask without expert."""
        rows, device = len(examples), rollout["prompt_ids"].device
        owners = group_owners(rows, self.num_generations, offset=self.accelerator.process_index * rows)
        tokenizer, limit = tokenizer_of(self.processing_class), self.max_completion_length
        experts = {row: expert_token_ids(examples[row][self.args.expert_column], tokenizer) for row in set(owners)}
        too_long = {row for row, ids in experts.items() if len(ids) > limit}
        scored = sorted(row for row, ids in experts.items() if ids)
        cut = self.args.cut_experts([experts[row] for row in scored])
        ids, mask = pad_completions(cut, pad_id=tokenizer.pad_token_id)
        logps = self.score(rollout, scored, ids.to(device), mask.to(device))
        # One more row, all masked, for the prompts without expert.
        places = {row: place for place, row in enumerate(scored)}
        index = [places.get(owner, len(scored)) for owner in owners]
        for name, prompts in {"without": set(experts) - set(scored), "truncated": too_long}.items():
            share = sum(owner in prompts for owner in owners) / rows
            self.log_scalar(f"calibrl/{name}_expert", torch.tensor(share, device=device))
        return {
            "expert_logps": F.pad(logps, (0, 0, 0, 1))[index],
            "expert_mask": F.pad(mask.to(device), (0, 0, 0, 1))[index],
        }
