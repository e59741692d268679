"""GRPO that samples part of each group from changed images and trains on the clean one."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .pixels import Row, get_layout, join_rows, replace_pictures, row_pictures, save_comparison, split_rows
from .rollouts import Rollout, total_rewards


def check_alpha(alpha: float) -> None:
    """Raise `ValueError` unless a step size is a float in [0, 1], in units where 1 is full intensity."""
    if not isinstance(alpha, float) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a float in [0, 1], 1 = full intensity (2/255 = 0.00784), got {alpha!r}.")


@dataclass
class ChangedImageConfig(EntropyGRPOConfig):
    """Options of the methods that sample part of each group from changed images."""

    clean_generations: int | None = field(
        default=None,
        metadata={
            "help": "Completions of each group sampled from the clean image, >= 1. Default: what "
            "adversarial_generations leaves of num_generations, or half, rounded up."
        },
    )
    adversarial_generations: int | None = field(
        default=None,
        metadata={
            "help": "Completions of each group sampled from the changed image, >= 1; more explore more and learn "
            "less from what the model will see. Default: what clean_generations leaves of num_generations."
        },
    )
    save_adversarial_images: int = field(
        default=0,
        metadata={
            "help": "Images to write to <output_dir>/adversarial_images, each clean, changed and as an amplified "
            "difference; the first ones of the run."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        total = self.num_generations or 0
        if self.clean_generations is None:
            changed = total // 2 if self.adversarial_generations is None else self.adversarial_generations
            self.clean_generations = total - changed
        if self.adversarial_generations is None:
            self.adversarial_generations = total - self.clean_generations
        clean, changed = self.clean_generations, self.adversarial_generations
        if clean < 1 or changed < 1 or clean + changed != total:
            raise ValueError(
                f"clean_generations and adversarial_generations must be >= 1 and add up to num_generations ({total}), "
                f"got {clean} and {changed}."
            )
        if self.save_adversarial_images < 0:
            raise ValueError(f"save_adversarial_images must be >= 0, got {self.save_adversarial_images}.")
        self.check_whole_groups()

    def group_parts(self) -> tuple[int, int]:
        """Completions of each group sampled from the clean and from the changed image."""
        return self.clean_generations or 0, self.adversarial_generations or 0


@dataclass(frozen=True)
class Prompt:
    """A prompt, its pictures, and what the policy answered to them."""

    row: Row
    pictures: list[Tensor]
    """(3, height, width) of each image in [0, 1]; see `pixels`."""
    completions: list[list[int]]
    """Token ids of the `clean_generations` completions of the clean images."""


class ChangedImageTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is that the last completions of each group are sampled from changed images.

    The group is scored and normalised as one, and optimised on the clean image. A changed picture becomes an 8-bit
    image that goes through the processor like any other, so that every sampling engine sees it. Prompts without an
    image are sampled as ever. Subclasses say how pictures change.

    The sampler's log-probs of changed rows belong to another image than the one trained on. TRL gets them as unknown
    (NaN), for which its importance correction takes the ratio 1.
    """

    args: ChangedImageConfig
    config_class: type[ChangedImageConfig] = ChangedImageConfig
    metric_prefix: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_other_samplers(kwargs, f"{type(self).__name__} samples whole groups itself and does")
        super().__init__(*args, **kwargs)
        self._layout = get_layout(self.model.config.model_type, self.processing_class)
        self._is_adversarial: list[bool] = []
        self._images_saved = 0

    def change_pictures(self, prompts: list[Prompt]) -> list[list[Tensor]]:
        """The changed pictures of each prompt, in [0, 1] and of the same sizes; called once per rollout."""
        raise NotImplementedError

    def sample(self, prompt_ids: list[list[int]], images: list | None, fields: dict[str, Any], *, generate: Callable):
        clean_size, changed_size = self.args.group_parts()
        group = clean_size + changed_size
        check_groups(prompt_ids, group)
        rows = split_rows(prompt_ids, images, fields, self._layout)
        inherited = super().sample

        def draw(rows: list[Row], per_prompt: int) -> list[tuple]:
            engine = functools.partial(generate, num_generations=per_prompt)
            images_or_none = None if images is None else [row.images for row in rows]
            ids, logps = inherited([row.prompt_ids for row in rows], images_or_none, join_rows(rows), generate=engine)
            return list(zip(ids, [None] * len(rows) if logps is None else logps, strict=True))

        clean = draw([row for index, row in enumerate(rows) if index % group < clean_size], clean_size)
        prompts = [
            Prompt(row, row_pictures(row, self._layout), [ids for ids, _ in clean[start : start + clean_size]])
            for row, start in zip(rows[::group], range(0, len(clean), clean_size), strict=True)
        ]
        changed_rows = [row for row in self._changed_rows(prompts) for _ in range(changed_size)]
        changed = [
            (ids, logps if logps is None or not row.images else [math.nan] * len(ids))
            for row, (ids, logps) in zip(changed_rows, draw(changed_rows, changed_size), strict=True)
        ]
        remaining = {True: iter(clean), False: iter(changed)}
        samples = [next(remaining[index % group < clean_size]) for index in range(len(rows))]
        self._is_adversarial = [index % group >= clean_size and bool(row.images) for index, row in enumerate(rows)]
        logps = None if samples[0][1] is None else [logps for _, logps in samples]
        return [ids for ids, _ in samples], logps

    def _changed_rows(self, prompts: list[Prompt]) -> list[Row]:
        pictures = self.change_pictures(prompts)
        missing = self.args.save_adversarial_images - self._images_saved
        if missing > 0 and self.accelerator.is_main_process:
            pairs = [pair for prompt, new in zip(prompts, pictures) for pair in zip(prompt.pictures, new)][:missing]
            folder = Path(self.args.output_dir or ".") / "adversarial_images"
            for number, (clean, changed) in enumerate(pairs):
                save_comparison(folder, f"step-{self.state.global_step + 1:06d}-{number:02d}", clean, changed)
            self._images_saved += len(pairs)
        self.log_ratio(
            f"{self.metric_prefix}/text_only_prompts", sum(not prompt.pictures for prompt in prompts), len(prompts)
        )
        return replace_pictures([prompt.row for prompt in prompts], pictures, self._layout)

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "images_saved": self._images_saved}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self._images_saved = state["images_saved"]

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        is_adversarial = torch.tensor(self._is_adversarial, device=self.accelerator.device)
        total = self.local_rows(total_rewards(rewards, self.reward_weights.to(rewards.device)))
        for name, chosen in (("clean", ~is_adversarial), ("adversarial", is_adversarial)):
            judged = total[chosen & ~total.isnan()]
            self.log_ratio(f"{self.metric_prefix}/reward_{name}", judged.sum(), judged.numel())
        extra = super().prepare_rollout(rollout, examples, rewards)
        return {**extra, "is_adversarial": is_adversarial}


def refuse_other_samplers(kwargs: dict[str, Any], who: str) -> None:
    """Raise `ValueError` for an argument of a trainer with which TRL samples in a way of its own."""
    for option in ("tools", "environment_factory", "rollout_func"):
        if kwargs.get(option):
            raise ValueError(f"{who} not support {option}.")


def check_groups(prompt_ids: list[list[int]], group: int) -> None:
    """Raise `ValueError` unless the rows are whole groups of one prompt each."""
    for start in range(0, len(prompt_ids), group):
        rows = prompt_ids[start : start + group]
        if len(rows) < group or any(ids != rows[0] for ids in rows):
            raise ValueError(f"Rows {start} to {start + len(rows) - 1} are not {group} rows of the same prompt.")
