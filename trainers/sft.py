"""Supervised fine-tuning, as warm start or baseline: the same prompts as GRPO, and the responses to imitate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row
from vlm_entropy.rewards import find_box, from_original, to_original

from .checkpoints import VLMCheckpoints
from .shared_forward import network_of
from .vision_inputs import VisionInStep

PLACES = ("{box}", "{point}")
PLACE_COLUMNS = ["image_size", "input_size", "coordinate_space", "solution_space"]


@dataclass
class SupervisedConfig(SFTConfig):
    """Options of supervised fine-tuning, besides TRL's."""

    response_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the text to train on; '{box}' in it becomes the row's box in the model's "
            "coordinates, and '{point}' its middle. Required."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Has to stay none: truncation would cut the placeholder tokens of an image apart."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.response_column is None:
            raise ValueError("--method sft needs --response_column: the column with the text to train on.")
        if self.max_length is not None:
            raise ValueError(f"--max_length {self.max_length} would cut images apart: leave it out with --method sft.")

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        """Prompt, images and completion of each row, as TRL's `SFTTrainer` takes them.

        Raises:
            ValueError: for a row without a response.
        """
        examples = dataset.select_columns(PLACE_COLUMNS)
        texts = [
            response_text(row, example, response_column=str(self.response_column))
            for row, example in zip(rows, examples, strict=True)
        ]
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        return dataset.select_columns(["prompt", "images"]).add_column("completion", completions)


class SupervisedTrainer(VLMCheckpoints, SFTTrainer):
    """TRL's `SFTTrainer`, with checkpoints of vision-language models that can be resumed.

    The loss is the mean over all response tokens of an optimizer step. TRL divides by them for models that take a
    count of tokens; Qwen-VL says that it takes none, and gets a mean of micro-batch means, which changes with the
    number of processes. The count enters TRL's own loss alone.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        if self.accelerator.num_processes > 1:
            VisionInStep(network_of(self.model))

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "tokens": self._total_train_tokens}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self._total_train_tokens = state["tokens"]


def response_text(row: Row, example: dict, *, response_column: str) -> str:
    """The response of a row, with `{box}` its gold box as the model would write it and `{point}` the box's middle.

    >>> # columns: {"response": "<think>top left</think><answer>{box}</answer>"}, answer: "[0, 0, 14, 28]"
    >>> # "<think>top left</think><answer>[0, 0, 14, 28]</answer>"

    Raises:
        ValueError: for a row without the column, or with a place in it and no box as its answer.
    """
    text = row.columns.get(response_column)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{row.source}: column {response_column!r} holds no response to train on, but {text!r}.")
    places = [place for place in PLACES if place in text]
    if not places:
        return text
    gold = find_box(row.answer)
    if gold is None or example["image_size"] is None:
        raise ValueError(
            f"{row.source}: the response has {places[0]}, but the answer {row.answer!r} is no box on an image."
        )
    sizes = {"image_size": tuple(example["image_size"]), "input_size": tuple(example["input_size"])}
    original = to_original(gold, example["solution_space"], **sizes)
    x1, y1, x2, y2 = from_original(original, example["coordinate_space"], **sizes)
    text = text.replace("{box}", str([round(side) for side in (x1, y1, x2, y2)]))
    return text.replace("{point}", str([round((x1 + x2) / 2), round((y1 + y2) / 2)]))
