"""Expert responses: from a column of the data to token ids beside a rollout."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row

from .base import EntropyGRPOConfig
from .sft import PLACE_COLUMNS, response_text

LongExpert = Literal["truncate", "refuse"]


@dataclass
class ExpertConfig(EntropyGRPOConfig):
    """Options of the methods that learn with an expert's responses."""

    expert_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the expert's response: text, or a chat of one assistant message. Rows may lack it. "
            "Required, except with --baseline reference of calibrl."
        },
    )
    long_expert: LongExpert = field(
        default="truncate",
        metadata={"help": "An expert longer than max_completion_length is cut ('truncate') or an error ('refuse')."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.long_expert not in get_args(LongExpert):
            raise ValueError(
                f"long_expert must be one of {', '.join(get_args(LongExpert))}, got {self.long_expert!r}."
            )

    def prepare_dataset(
        self, rows: Sequence[Row], dataset: Dataset, *, family: Family, processor: Any, reward_names: Sequence[str]
    ) -> Dataset:
        dataset = super().prepare_dataset(rows, dataset, family=family, processor=processor, reward_names=reward_names)
        if self.expert_column:
            dataset = render_experts(rows, dataset, column=self.expert_column)
            self.check_expert_data(dataset, processor)
        return dataset

    def check_expert_data(self, dataset: Dataset, processor: Any) -> None:
        """`check_expert_column` with these options."""
        check_expert_column(
            dataset,
            processor,
            column=str(self.expert_column),
            max_completion_length=int(self.max_completion_length or 0),
            long_expert=self.long_expert,
        )

    def cut_experts(self, experts: Sequence[list[int]]) -> list[list[int]]:
        """Token ids of experts without what is longer than a completion may be.

        Raises:
            ValueError: for a longer one, with long_expert="refuse".
        """
        limit, longest = int(self.max_completion_length or 0), max(map(len, experts), default=0)
        if longest > limit and self.long_expert == "refuse":
            raise ValueError(f"An expert has {longest} tokens, more than max_completion_length {limit}.")
        return [ids[:limit] for ids in experts]


def expert_text(expert: Any) -> str:
    """The text of an expert response; "" for none.

    It is plain text, or a chat of one message, [{"role": "assistant", "content": "..."}], whose content may also be
    [{"type": "text", "text": "..."}].

    Raises:
        ValueError: for anything else.
    """
    if expert is None or isinstance(expert, str):
        return expert or ""
    match expert:
        case []:
            return ""
        case [{"role": "assistant", "content": str() as text}]:
            return text
        case [{"role": "assistant", "content": [{"type": "text", "text": str() as text}]}]:
            return text
    raise ValueError(f"An expert response must be text or a chat of one assistant message of text, got {expert!r}.")


def has_expert(expert: Any) -> bool:
    """Whether there is a response that is not blank."""
    return bool(expert_text(expert).strip())


def expert_token_ids(expert: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of an expert response as a sampled completion has them: the text and the end of the turn.

    No chat template is applied, for a completion starts after the template's own "assistant" header.

    Returns:
        The ids; none for a missing or blank response.
    """
    if not has_expert(expert):
        return []
    ids = tokenizer(expert_text(expert), add_special_tokens=False)["input_ids"]
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def tokenizer_of(processor: ProcessorMixin | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return processor.tokenizer if isinstance(processor, ProcessorMixin) else processor


def pad_completions(completions: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(R, Te) ids padded on the right and (R, Te) bool mask, Te = the longest length, at least 1."""
    if not completions:
        return torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool)
    ids = [torch.tensor(row, dtype=torch.long) for row in completions]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=pad_id), mask


def group_owners(rows: int, num_generations: int, *, offset: int) -> list[int]:
    """For each local row, the first local row with the same prompt.

    Args:
        rows: number of local rows.
        num_generations: G; rows of one prompt stand together.
        offset: number of rows on the processes before this one, on which the first group may have begun.
    """
    return [max(0, row - (offset + row) % num_generations) for row in range(rows)]


def render_experts(rows: Sequence[Row], dataset: Dataset, *, column: str) -> Dataset:
    """The data set with `{box}` in its experts' texts replaced by the gold box as the model would write it.

    Raises:
        ValueError: for a text with `{box}` in a row whose answer is no box.
    """
    if column not in dataset.column_names:
        return dataset
    examples = dataset.select_columns([*PLACE_COLUMNS, column])
    experts = [
        response_text(row, example, response_column=column)
        if isinstance(example[column], str) and example[column].strip()
        else example[column]
        for row, example in zip(rows, examples, strict=True)
    ]
    if experts == list(examples[column]):
        return dataset
    return dataset.remove_columns([column]).add_column(column, experts)


def check_expert_column(
    dataset: Dataset,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    *,
    column: str,
    max_completion_length: int,
    long_expert: LongExpert,
) -> None:
    """Refuse data without experts, and warn of the experts that will be cut.

    Raises:
        ValueError: for a column that does not exist, that is empty in all rows, that holds something else than a
            response, or, with long_expert="refuse", that holds a response longer than a completion may be.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"expert_column {column!r} is no column of the data, which has {sorted(dataset.column_names)}."
        )
    tokenizer = tokenizer_of(processor)
    lengths = [len(expert_token_ids(expert, tokenizer)) for expert in dataset[column]]
    if not any(lengths):
        raise ValueError(f"expert_column {column!r} is empty in all {len(lengths)} rows.")
    too_long = [row for row, length in enumerate(lengths) if length > max_completion_length]
    if too_long and long_expert == "refuse":
        raise ValueError(
            f"The expert of row {too_long[0] + 1} has {lengths[too_long[0]]} tokens, max_completion_length is "
            f"{max_completion_length}: raise it, or set long_expert='truncate' ({len(too_long)} rows are too long)."
        )
    if too_long:
        warnings.warn(
            f"{len(too_long)} of {len(lengths)} experts are cut to max_completion_length {max_completion_length}; the "
            f"longest has {max(lengths)} tokens.",
            stacklevel=2,
        )
