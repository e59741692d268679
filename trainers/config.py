"""The options of our trainers: TRL's, and what all methods add."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row

from .shared_prompt import SharePrompts


@dataclass
class EntropyGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig`, and places for methods to check themselves against the data and the length of the run."""

    share_prompts: SharePrompts = field(
        default="auto",
        metadata={
            "help": "Compute each prompt and its images once for the completions of its group, in sampling and in all "
            "forwards. 'auto': wherever this changes nothing but float rounding. 'on': also with dropout, and where "
            "it changes which rows form a micro-batch and the loss depends on that; an error where it cannot be "
            "done. 'off': as TRL."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.share_prompts not in ("auto", "on", "off"):
            raise ValueError(f"share_prompts must be 'auto', 'on' or 'off', got {self.share_prompts!r}.")

    def keeps_groups(self) -> bool:
        """Whether completions of a prompt are put into the same micro-batches as far as they fit.

        TRL deals the rows of a rollout out to micro-batches at random. Where all of them belong to one optimizer step
        and no term of the loss is a mean over a micro-batch, this changes no gradient.
        """
        in_one_step = self.gradient_accumulation_steps % (self.steps_per_generation or 1) == 0
        by_row = self.loss_type != "bnpo" and self.top_entropy_quantile == 1.0
        without_bonus = self.entropy_coef == 0 and not self.use_adaptive_entropy
        return self.share_prompts == "on" or (
            self.share_prompts == "auto" and in_one_step and by_row and without_bonus
        )

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps of a run over `num_rows` data set rows.

        Raises:
            ValueError: if the rows do not fill one generation batch, with which TRL would train on nothing.
        """
        assert self.generation_batch_size is not None  # set by TRL, as are the next two
        assert self.num_generations is not None
        assert self.steps_per_generation is not None
        prompts = self.generation_batch_size // self.num_generations
        if num_rows < prompts:
            raise ValueError(
                f"One generation batch takes {prompts} different prompts (generation_batch_size "
                f"{self.generation_batch_size} / num_generations {self.num_generations}), the data has {num_rows}."
            )
        microbatches = num_rows // prompts * self.steps_per_generation * self.num_iterations
        per_epoch = math.ceil(microbatches / self.gradient_accumulation_steps)
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * per_epoch)

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        """The data set as the trainer needs it, checked before a model loads.

        Args:
            rows: what was read from disk.
            dataset: an example per row, as `build_dataset` makes it.
            family: family of the model.
            processor: its processor.
            reward_names: `__name__` of each reward function.

        Raises:
            ValueError: for data that the options do not fit.
        """
        self.check_run(self.total_steps(len(dataset)))
        return dataset

    def check_whole_groups(self, who: str = "Every process") -> None:
        """Raise `ValueError` unless the rows of a rollout on one process are groups of `num_generations`."""
        local = self.per_device_train_batch_size * (self.steps_per_generation or 1)
        if local % (self.num_generations or 1):
            raise ValueError(
                f"{who} must hold whole groups: per_device_train_batch_size * steps_per_generation ({local}) must be "
                f"a multiple of num_generations ({self.num_generations})."
            )

    def check_run(self, total_steps: int) -> None:
        """Raise `ValueError` if a setting does not fit a run of `total_steps` optimizer steps."""
