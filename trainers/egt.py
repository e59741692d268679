"""EGT's low-to-high training: GRPO on rows in ascending order of response entropy (arXiv 2602.01884, stage 3)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from vlm_entropy.data.curriculum import curriculum
from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row

from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .rollouts import Rollout

Order = Literal["low_to_high", "high_to_low", "random"]
STAGE_COLUMN = "egt_stage"


def training_order(
    entropies: Sequence[float | None],
    *,
    order: Order = "low_to_high",
    stages: int = 1,
    cumulative: bool = False,
    shuffle: bool = False,
    seed: int = 0,
) -> list[list[int]]:
    """The rows of each stage, in the order in which they are trained on.

    low_to_high:  `curriculum` of H
    high_to_low:  `curriculum` of -H, so that equal entropies keep the order of the data here too
    random:       `curriculum` of a random permutation

    Source: arXiv 2602.01884; the other two orders are ablations. The paper does not say what H is, nor how many stages
    there are.

    Args:
        entropies: (N,) H in nats; None or non-finite for a row without one, which comes last in either order.
        order: see above.
        stages, cumulative: as of `curriculum`.
        shuffle: whether the rows of a stage are shuffled, each stage anew; no row leaves its stage.
        seed: of the random order and of the shuffles.

    Returns:
        Row numbers of each stage.
    """
    rng, rows = random.Random(seed), range(len(entropies))
    keys: dict[str, Sequence[float | None]] = {
        "low_to_high": entropies,
        "high_to_low": [None if entropy is None else -entropy for entropy in entropies],
        "random": rng.sample(rows, len(rows)),
    }
    blocks = curriculum(keys[order], stages=stages, cumulative=cumulative)
    return [rng.sample(block, len(block)) for block in blocks] if shuffle else blocks


@dataclass
class EgtConfig(EntropyGRPOConfig):
    """Options of low-to-high training, besides TRL's: one pass over the data, in their order."""

    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the whole curriculum, each in the same order."}
    )
    shuffle_dataset: bool | None = field(
        default=False,
        metadata={"help": "Shuffle the rows of each stage by --seed; rows never leave their stage. Needs egt_stages."},
    )
    egt_column: str = field(
        default="response_entropy",
        metadata={
            "help": "Column with each row's response entropy, a number, as the curation command writes it. Rows "
            "without a finite one come last."
        },
    )
    egt_order: Order = field(
        default="low_to_high",
        metadata={
            "help": "Ascending entropy ('low_to_high'), or for comparison descending ('high_to_low') or by --seed "
            "('random')."
        },
    )
    egt_stages: int = field(
        default=1,
        metadata={"help": "Contiguous blocks, >= 1, that the order is cut into; with 1 all rows are fully sorted."},
    )
    egt_cumulative: bool = field(
        default=False,
        metadata={"help": "Each stage repeats the rows of those before it; the run gets longer accordingly."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.egt_order not in get_args(Order):
            raise ValueError(f"egt_order must be one of {', '.join(get_args(Order))}, got {self.egt_order!r}.")
        if self.egt_stages < 1:
            raise ValueError(f"egt_stages must be >= 1, got {self.egt_stages}.")
        if self.egt_stages == 1 and (self.shuffle_dataset or self.egt_cumulative):
            name = "shuffle_dataset" if self.shuffle_dataset else "egt_cumulative"
            raise ValueError(f"{name} acts on the stages of the curriculum: set egt_stages to 2 or more, got 1.")
        if self.remove_unused_columns:
            raise ValueError("egt reads a column of the data: leave remove_unused_columns off.")

    def total_steps(self, num_rows: int) -> int:
        """As of GRPO, for the rows that the stages have together."""
        stages = curriculum([0.0] * num_rows, stages=self.egt_stages, cumulative=self.egt_cumulative)
        return super().total_steps(sum(map(len, stages)))

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        read_entropies(dataset, self.egt_column)
        return super().prepare_dataset(rows, dataset, family=family, processor=processor, reward_names=reward_names)

    def in_order(self, dataset: Any) -> Dataset:
        """The rows as they are trained on, those of a later stage after those of an earlier one, with `STAGE_COLUMN`.

        Raises:
            ValueError: for anything but a `Dataset`, and for data without entropies.
        """
        if not isinstance(dataset, Dataset):
            name = type(dataset).__name__
            raise ValueError(f"egt orders the rows of the data: train_dataset must be a Dataset, got {name}.")
        stages = training_order(
            read_entropies(dataset, self.egt_column),
            order=self.egt_order,
            stages=self.egt_stages,
            cumulative=self.egt_cumulative,
            shuffle=bool(self.shuffle_dataset),
            seed=self.seed,
        )
        return select_stages(dataset, stages)


def read_entropies(dataset: Dataset, column: str) -> list[float | None]:
    """The entropy of each row.

    Raises:
        ValueError: for a missing column, an entry that is neither a number nor None, or no finite number at all; and
            for data that were put in order before.
    """
    if STAGE_COLUMN in dataset.column_names:
        raise ValueError(f"The data has a column {STAGE_COLUMN!r}, which egt writes itself; rename it.")
    if column not in dataset.column_names:
        raise ValueError(f"egt_column {column!r} is no column of the data, which has {sorted(dataset.column_names)}.")
    entropies = list(dataset[column])
    for row, value in enumerate(entropies, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"egt_column {column!r} of row {row} is {value!r}, not a number.")
    if not any(value is not None and math.isfinite(value) for value in entropies):
        raise ValueError(f"egt_column {column!r} has a finite number in none of the {len(entropies)} rows.")
    return entropies


def select_stages(dataset: Dataset, stages: Sequence[Sequence[int]]) -> Dataset:
    """The rows of all stages, one stage after the other, with the number of the stage in `STAGE_COLUMN`, from 1.

    A row may be in several stages. `add_column` copies a data set that is a selection from another, images and all, so
    it is called once on what the caller has, and then on the result.
    """
    rows = len(dataset)
    whole = dataset.add_column(STAGE_COLUMN, [0] * rows).remove_columns([STAGE_COLUMN])
    numbered = [whole.add_column(STAGE_COLUMN, [number] * rows) for number in range(1, len(stages) + 1)]
    return concatenate_datasets([part.select(stage) for part, stage in zip(numbered, stages, strict=True)])


class EgtTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is the order of the rows, `training_order`, which is set before training starts.

    The rows pass through TRL's sampler unshuffled, a generation batch at a time. TRL drops the rows at the end that do
    not fill one, by default those of highest entropy; how many is printed. A generation batch may hold the end of one
    stage and the beginning of the next.

    Logged: `egt/entropy`, mean of the column over the rows of the rollout that have a finite number; `egt/stage`, mean
    number of their stages, from 1.
    """

    args: EgtConfig
    config_class: type[EntropyGRPOConfig] = EgtConfig

    def __init__(self, model: Any, reward_funcs: Any = None, args: EgtConfig | None = None, **kwargs: Any):
        if isinstance(args, EgtConfig):
            kwargs = {**kwargs, "train_dataset": args.in_order(kwargs.get("train_dataset"))}
        super().__init__(model, reward_funcs, args, **kwargs)
        self.shuffle_dataset = False
        rows, batch = len(kwargs["train_dataset"]), self.args.generation_batch_size or 0
        if dropped := rows % (batch // self.num_generations):
            self.accelerator.print(f"The last {dropped} of {rows} rows fill no generation batch: they are not used.")

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        extra = super().prepare_rollout(rollout, examples, rewards)
        device = self.accelerator.device
        values = [math.nan if (value := example[self.args.egt_column]) is None else value for example in examples]
        entropies = self.accelerator.gather(torch.tensor(values, dtype=torch.float32, device=device))
        known = entropies[entropies.isfinite()]
        if len(known):
            self.log_scalar("egt/entropy", known.mean().item())
        stages = torch.tensor([example[STAGE_COLUMN] for example in examples], device=device)
        self.log_scalar("egt/stage", stages.float().mean())
        return extra
