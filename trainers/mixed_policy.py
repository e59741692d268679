"""Groups of sampled responses and one of an expert: what LUFFY and RL-PLUS share."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from torch import Tensor

from .advantages import check_one_sum, group_advantages
from .base import EntropyGRPOTrainer, Policy
from .changed_images import check_groups, refuse_other_samplers
from .experts import ExpertConfig, expert_token_ids, has_expert, tokenizer_of
from .pixels import Row, get_layout, join_rows, split_rows
from .rollouts import Rollout, total_rewards

ExpertBaseline = Literal["on_policy", "union"]


@dataclass
class MixedPolicyConfig(ExpertConfig):
    """Options of the methods whose groups hold an expert's response, besides TRL's."""

    scale_rewards: str = field(
        default="none",
        metadata={"help": "'none', as in both papers' code; 'group' or 'batch' divide advantages by the reward std."},
    )
    expert_baseline: ExpertBaseline = field(
        default="on_policy",
        metadata={
            "help": "Rewards that the advantages of a group are centred on: those of its sampled responses "
            "('on_policy', CalibRL's port; only with --scale_rewards none), or the expert's too ('union', the "
            "methods' own code), which makes the expert push less and the sampled responses be pushed down more."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.expert_column:
            raise ValueError("Mixed groups need expert_column: the name of the column with the expert's response.")
        if self.max_completion_length is None:
            raise ValueError("Mixed groups cut experts to max_completion_length, which must be a number, got None.")
        if self.expert_baseline not in get_args(ExpertBaseline):
            raise ValueError(
                f"expert_baseline must be one of {', '.join(get_args(ExpertBaseline))}, got {self.expert_baseline!r}."
            )
        if self.expert_baseline == "on_policy":
            check_one_sum(self, "expert_baseline='on_policy'")
            if self.scale_rewards != "none":
                raise ValueError(
                    "expert_baseline='on_policy' needs scale_rewards='none': where all sampled responses earn the "
                    "same, their standard deviation is 0, and the expert's advantage would be its reward / 0.0001 "
                    f"(got {self.scale_rewards!r})."
                )
        if self.importance_sampling_level != "token":
            raise ValueError(
                "The expert's tokens are weighed one by one: leave importance_sampling_level at 'token' "
                f"(got {self.importance_sampling_level!r})."
            )
        if self.top_entropy_quantile < 1 or self.off_policy_mask_threshold is not None:
            raise ValueError(
                "The expert's term acts on all its tokens: leave top_entropy_quantile at 1 and "
                f"off_policy_mask_threshold off (got {self.top_entropy_quantile} and "
                f"{self.off_policy_mask_threshold})."
            )
        self.check_whole_groups()


class MixedPolicyTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is that the last response of each group is an expert's, with a loss of its own.

    The expert's response is not sampled, is scored by the reward functions like any other, and counts among the rows
    and tokens that the loss is divided by. The policy loss is that of the sampled responses; the expert's tokens get
    Σ_i (1/n_i) Σ_t m_it · `expert_term` in its place, n_i the policy loss's own `row_normalisers`, without clipping or
    importance correction of a sampler. A prompt without an expert is sampled as ever.

    What TRL takes over all rows takes the expert's in: a KL term, an entropy bonus, and the metrics of rewards,
    lengths, entropy and clipping.
    """

    args: MixedPolicyConfig
    config_class: type[MixedPolicyConfig] = MixedPolicyConfig
    metric_prefix: str

    def __init__(self, model: Any, reward_funcs: Any = None, args: MixedPolicyConfig | None = None, **kwargs: Any):
        refuse_other_samplers(kwargs, f"{type(self).__name__} samples whole groups itself and does")
        super().__init__(model, reward_funcs, args, **kwargs)
        self._layout = get_layout(self.model.config.model_type, self.processing_class)
        if isinstance(self.train_dataset, Dataset):
            self.args.check_expert_data(self.train_dataset, self.processing_class)

    def expert_term(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        """(B, T) loss of the expert's tokens, from (B,) advantages that are 0 in all other rows."""
        raise NotImplementedError

    def sample(self, prompt_ids: list[list[int]], images: list | None, fields: dict[str, Any], *, generate: Callable):
        group = self.num_generations
        check_groups(prompt_ids, group)
        experts = self._expert_ids(self.examples[::group])
        missing = [place for place, ids in enumerate(experts) if not ids]
        # The sampler is called by all processes together, with equally many rows.
        counts = self.accelerator.gather(torch.tensor([len(missing)], device=self.accelerator.device))
        if counts.min() == len(experts):
            return super().sample(prompt_ids, images, fields, generate=generate)
        rows = split_rows(prompt_ids, images, fields, self._layout)
        inherited = super().sample

        def draw(rows: list[Row], per_prompt: int) -> list[tuple]:
            if not rows:
                return []
            engine = functools.partial(generate, num_generations=per_prompt)
            images_or_none = None if images is None else [row.images for row in rows]
            ids, logps = inherited([row.prompt_ids for row in rows], images_or_none, join_rows(rows), generate=engine)
            return list(zip(ids, [None] * len(rows) if logps is None else logps, strict=True))

        sampled = iter(draw([row for index, row in enumerate(rows) if (index + 1) % group], group - 1))
        idle: list[Row] = [rows[0]] * (int(counts.max()) - len(missing))
        last = iter(draw([rows[place * group] for place in missing] + idle, 1))
        samples: list[tuple] = []
        for ids in experts:
            samples += [next(sampled) for _ in range(group - 1)]
            samples.append((ids, [math.nan] * len(ids)) if ids else next(last))
        logps = None if samples[0][1] is None else [logps for _, logps in samples]
        return [ids for ids, _ in samples], logps

    def group_advantages(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> Tensor:
        if self.args.expert_baseline == "union":
            return super().group_advantages(rollout, examples, rewards)
        is_expert = self.accelerator.gather(self._is_expert(examples))
        totals = total_rewards(rewards, self.reward_weights.to(rewards.device))
        return self.local_rows(group_advantages(totals, self.num_generations, scale="none", in_baseline=~is_expert))

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        extra = super().prepare_rollout(rollout, examples, rewards)
        is_expert = self._is_expert(examples)
        totals = self.local_rows(total_rewards(rewards, self.reward_weights.to(rewards.device)))
        for name, chosen in (("on_policy", ~is_expert), ("expert", is_expert)):
            judged = totals[chosen & ~totals.isnan()]
            self.log_ratio(f"{self.metric_prefix}/reward_{name}", judged.sum(), judged.numel())
        return {**extra, "is_expert": is_expert, "expert_advantages": rollout["advantages"] * is_expert}

    def shape_advantages(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        shaped = super().shape_advantages(advantages, policy, rollout)
        is_expert = rollout["is_expert"]
        return shaped.masked_fill(is_expert if shaped.dim() == 1 else is_expert[:, None], 0.0)

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        term = self.expert_term(rollout["expert_advantages"], policy, rollout)
        loss = self.aggregate_as_policy_loss(term, policy, rollout)
        self.log_scalar(f"{self.metric_prefix}/term", loss)
        of_expert = policy.logps.detach()[policy.mask & rollout["is_expert"][:, None]]
        self.log_ratio(f"{self.metric_prefix}/expert_probability", of_expert.exp().sum(), of_expert.numel())
        return super().extra_loss(policy, rollout) + loss

    def _expert_ids(self, examples: list[dict]) -> list[list[int]]:
        """Token ids of the expert of each example, none where there is none, cut to the length of a completion."""
        tokenizer = tokenizer_of(self.processing_class)
        experts = [expert_token_ids(example[self.args.expert_column], tokenizer) for example in examples]
        cut = self.args.cut_experts(experts)
        counts = {
            "without_expert": sum(not ids for ids in experts),
            "truncated_expert": sum(len(before) > len(after) for before, after in zip(experts, cut, strict=True)),
        }
        for name, count in counts.items():
            share = torch.tensor(count / len(experts), device=self.accelerator.device)
            self.log_scalar(f"{self.metric_prefix}/{name}", share)
        return cut

    def _is_expert(self, examples: list[dict]) -> Tensor:
        """(N,) bool, true = the row is an expert's: the last one of a group that has an expert."""
        group, column = self.num_generations, self.args.expert_column
        flags = [(row + 1) % group == 0 and has_expert(example[column]) for row, example in enumerate(examples)]
        return torch.tensor(flags, device=self.accelerator.device)
