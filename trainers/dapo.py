"""DAPO: GRPO without the prompts that teach nothing, and with a soft limit of length (arXiv 2503.14476)."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from torch import Tensor

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row
from vlm_entropy.rewards import REWARDS, SoftOverlong

from .advantages import check_one_sum
from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .changed_images import ChangedImageTrainer, refuse_other_samplers
from .experts import tokenizer_of
from .rollouts import Scored, join_rollouts, total_rewards


def informative_groups(rewards: Tensor, num_generations: int, *, min_spread: float = 1e-6) -> Tensor:
    """The groups whose rewards differ, the only ones with an advantage other than 0.

    informative_g = max_i r_gi - min_i r_gi > min_spread

    Source: arXiv 2503.14476, Eq. 11, 0 < #correct < G; the authors' code keeps groups with a reward std above 0.
    Departure: a spread that is only float noise does not count.

    Args:
        rewards: (N,), groups together, NaN for a row without a reward, which is ignored.
        num_generations: G, N a multiple of it.
        min_spread: in reward units.

    Returns:
        (N / G,) bool; false for a group with fewer than two rewards.
    """
    grouped = rewards.view(-1, num_generations)
    highest = torch.where(grouped.isnan(), -math.inf, grouped).amax(dim=1)
    lowest = torch.where(grouped.isnan(), math.inf, grouped).amin(dim=1)
    return highest - lowest > min_spread


def draw_rows(num_rows: int, places: range, *, seed: int, step: int, rollout: int) -> list[int]:
    """Some rows of the random order in which a rollout takes additional prompts.

    The order is endless: one permutation of all rows after the other, so that no row comes twice before all came once.

    Args:
        num_rows: rows of the data set, ≥ 1.
        places: places in the order, from 0.
        seed, step, rollout: non-negative integers that decide the order.

    Returns:
        Row numbers in [0, num_rows), one per place.
    """
    passes = {place // num_rows for place in places}
    orders = {number: np.random.default_rng([seed, step, rollout, number]).permutation(num_rows) for number in passes}
    return [int(orders[place // num_rows][place % num_rows]) for place in places]


def replace_groups(
    scored: Scored, fresh: Scored, replacements: dict[int, int], *, num_generations: int, pad_id: int
) -> Scored:
    """Completions with some groups exchanged for groups of another sampling, in place.

    Args:
        scored: N rows, in groups of `num_generations`.
        fresh: more rows, in groups of the same size.
        replacements: group of `scored` -> group of `fresh` that takes its place.
        num_generations: G.
        pad_id: the tokenizer's padding token.

    Returns:
        N rows; the rollout lacks `num_items_in_batch`.
    """
    sources = [
        (group in replacements, replacements.get(group, group))
        for group in range(len(scored.examples) // num_generations)
    ]
    parts = []
    for is_new, run in itertools.groupby(sources, key=lambda source: source[0]):
        rows = [group * num_generations + place for _, group in run for place in range(num_generations)]
        parts.append((fresh if is_new else scored, rows))
    return Scored(
        join_rollouts([(part.rollout, rows) for part, rows in parts], pad_id=pad_id),
        [part.examples[row] for part, rows in parts for row in rows],
        torch.cat([part.rewards[rows] for part, rows in parts]),
    )


@dataclass
class DapoConfig(EntropyGRPOConfig):
    """Options of DAPO, besides TRL's. Defaults: arXiv 2503.14476 and its authors' code.

    TRL's own defaults are DAPO's lower clip range (`epsilon` 0.2), its token-level loss (`loss_type` dapo) and its
    want of a KL term (`beta` 0); TRL's `mask_truncated_completions` is the paper's overlong filtering.
    """

    epsilon_high: float | None = field(
        default=0.28,
        metadata={
            "help": "Clip-higher: ratios are clipped above 1 + epsilon_high; larger lets rare tokens grow more."
        },
    )
    dynamic_sampling: bool = field(
        default=True,
        metadata={
            "help": "Replace groups whose rewards are all equal, which have no gradient, by groups of other prompts, "
            "sampled for the purpose."
        },
    )
    max_resamples: int = field(
        default=9,
        metadata={
            "help": "How many more times, >= 1, to sample prompts in place of uninformative groups; what is left then "
            "is trained on as it is. Larger fills more places and takes longer. The authors' code gives up after 10 "
            "samplings."
        },
    )
    informative_reward: str | None = field(
        default=None,
        metadata={
            "help": "Reward in which the completions of a group must differ; name the accuracy reward to ignore "
            "differences in format (default: the weighted sum of all, without the length penalty)."
        },
    )
    overlong_cache: int | None = field(
        default=None,
        metadata={
            "help": "Tokens before max_completion_length over which a reward of 0 to -1 for length falls, at most all "
            "of them; larger starts the penalty at shorter answers. The paper has 4096 of 20480 (default: no penalty)."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_resamples < 1:
            raise ValueError(
                f"max_resamples must be >= 1, got {self.max_resamples}; dynamic_sampling switches it off."
            )
        limit = self.max_completion_length
        if self.overlong_cache is not None and not (limit is not None and 1 <= self.overlong_cache <= limit):
            raise ValueError(
                f"overlong_cache must be 1 to max_completion_length ({limit}) tokens, got {self.overlong_cache}."
            )
        if self.dynamic_sampling:
            self._check_dynamic_sampling()

    def _check_dynamic_sampling(self) -> None:
        check_one_sum(self, "dynamic_sampling")
        if self.scale_rewards not in ("group", "none"):
            raise ValueError(
                "dynamic_sampling exchanges groups between samplings: scale_rewards must be 'group' or 'none', got "
                f"{self.scale_rewards!r}."
            )
        if self.remove_unused_columns:
            raise ValueError("dynamic_sampling draws whole rows of the data: leave remove_unused_columns off.")
        self.check_whole_groups("With dynamic_sampling every process")

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        self.informative_column(reward_names)
        return super().prepare_dataset(rows, dataset, family=family, processor=processor, reward_names=reward_names)

    def informative_column(self, reward_names: Sequence[str]) -> int | None:
        """Which of the rewards decides whether a group is informative, by its place; None for their weighted sum.

        Raises:
            ValueError: if there is no such reward.
        """
        if self.informative_reward is None:
            return None
        known = REWARDS.get(self.informative_reward)
        name = self.informative_reward if known is None else known.__name__
        if name not in reward_names:
            raise ValueError(
                f"informative_reward {self.informative_reward!r} is none of the rewards {', '.join(reward_names)}."
            )
        return list(reward_names).index(name)


class DapoTrainer(EntropyGRPOTrainer):
    """GRPO whose only changes are the options of `DapoConfig`, dynamic sampling and the penalty on length.

    Dynamic sampling: while a process has groups whose rewards are all equal, every process samples and scores as many
    more prompts as the one with most such groups lacks, `max_resamples` times at most. The informative ones take the
    places of the others; what is too much is dropped. The prompts come from the training data, in a random order that
    follows from the seed, the optimizer step and the process; the order of the batches themselves is untouched.
    Departures from the authors' code, which takes the next batches of the data loader, of three times the size in its
    scripts, until their informative groups fill one, and stops with an error at its cap.

    The penalty is one more reward, `SoftOverlong` of weight 1: 0 up to max_completion_length - overlong_cache tokens,
    then falling linearly to -1 (Eq. 13). It has no say in which groups are informative.

    Logged beside TRL's metrics, which describe all that was sampled: `dapo/extra_rollouts`, completions sampled beyond
    the batch, of all processes; `dapo/resamples`, how many times; `dapo/informative_groups`, share of the groups
    trained on.
    """

    args: DapoConfig
    config_class: type[EntropyGRPOConfig] = DapoConfig

    def __init__(self, model: Any, reward_funcs: Any = None, args: DapoConfig | None = None, **kwargs: Any):
        if isinstance(args, DapoConfig) and args.dynamic_sampling:
            self._check_dynamic_sampling(kwargs)
        own = [reward_funcs] if callable(reward_funcs) or isinstance(reward_funcs, str) else list(reward_funcs or [])
        if isinstance(args, DapoConfig) and args.overlong_cache is not None:
            reward_funcs, args, kwargs = add_overlong_penalty(own, args, kwargs)
        super().__init__(model, reward_funcs, args, **kwargs)
        self._own_rewards = len(own)
        self._informative_column = self.args.informative_column(self.reward_func_names[: len(own)])
        self._rollout_of_step = (-1, 0)

    def _check_dynamic_sampling(self, kwargs: dict[str, Any]) -> None:
        refuse_other_samplers(kwargs, "dynamic_sampling does")
        if isinstance(kwargs.get("train_dataset"), IterableDataset):
            raise ValueError("dynamic_sampling draws rows by number: train_dataset must not be an IterableDataset.")
        if isinstance(self, ChangedImageTrainer):
            raise ValueError(
                f"{type(self).__name__} knows which completions came from changed images only for one sampling: set "
                "dynamic_sampling to False."
            )

    def resample(self, scored: Scored, *, score: Callable[[list[dict]], Scored]) -> Scored:
        scored = super().resample(scored, score=score)
        if not self.args.dynamic_sampling:
            return scored
        is_informative = self._is_informative(scored)
        rollout, drawn, resamples = self._number_rollout(), 0, 0
        while resamples < self.args.max_resamples and (count := self._most_missing(is_informative)):
            fresh = score(self._draw(count, drawn, rollout))
            found = self._is_informative(fresh).nonzero().flatten().tolist()
            replacements = dict(zip((~is_informative).nonzero().flatten().tolist(), found))
            if replacements:
                pad_id: Any = tokenizer_of(self.processing_class).pad_token_id
                sizes = {"num_generations": self.num_generations, "pad_id": pad_id}
                scored = replace_groups(scored, fresh, replacements, **sizes)
                is_informative[list(replacements)] = True
            drawn, resamples = drawn + count, resamples + 1
        self.log_scalar("dapo/extra_rollouts", drawn * self.num_generations * self.accelerator.num_processes)
        self.log_scalar("dapo/resamples", resamples)
        self.log_scalar("dapo/informative_groups", is_informative.float().mean())
        tokens = self.accelerator.gather(scored.rollout["completion_mask"].sum()).sum()
        return scored._replace(rollout={**scored.rollout, "num_items_in_batch": tokens})

    def _is_informative(self, scored: Scored) -> Tensor:
        own, column = self._own_rewards, self._informative_column
        weights = self.reward_weights[:own].to(scored.rewards.device)
        decisive = total_rewards(scored.rewards[:, :own], weights) if column is None else scored.rewards[:, column]
        return informative_groups(decisive, self.num_generations)

    def _most_missing(self, is_informative: Tensor) -> int:
        """Uninformative groups of the process that has most of them."""
        return int(self.accelerator.gather((~is_informative).sum()).max())

    def _number_rollout(self) -> int:
        """Which rollout of this optimizer step is being sampled, from 0."""
        step, number = self._rollout_of_step
        number = number + 1 if step == self.state.global_step else 0
        self._rollout_of_step = (self.state.global_step, number)
        return number

    def _draw(self, count: int, drawn: int, rollout: int) -> list[dict]:
        """Rows of `count` additional prompts of this process, of which every process has drawn `drawn` already."""
        dataset: Any = self.train_dataset
        start = drawn * self.accelerator.num_processes + count * self.accelerator.process_index
        places = range(start, start + count)
        step = self.state.global_step
        numbers = draw_rows(len(dataset), places, seed=self.args.seed, step=step, rollout=rollout)
        examples = [dataset[number] for number in numbers]
        # The data loader gives each completion a dictionary of its own, on the device.
        repeated = [example for example in examples for _ in range(self.num_generations)]
        return send_to_device(repeated, self.accelerator.device)


def add_overlong_penalty(
    reward_funcs: list, args: DapoConfig, kwargs: dict[str, Any]
) -> tuple[list, DapoConfig, dict[str, Any]]:
    """The trainer's arguments with the penalty on length as one more reward, of weight 1; they are not changed."""
    limit, cache, weights = args.max_completion_length, args.overlong_cache, args.reward_weights
    assert limit is not None  # the options refuse it
    assert cache is not None
    if weights is not None:
        args = copy.copy(args)
        args.reward_weights = [*weights, 1.0]
    processors = kwargs.get("reward_processing_classes")
    if processors is not None:
        processors = processors if isinstance(processors, list) else [processors]
        kwargs = {**kwargs, "reward_processing_classes": [*processors, None]}
    return [*reward_funcs, SoftOverlong(max_length=limit, cache=cache)], args, kwargs
