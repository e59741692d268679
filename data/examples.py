"""From rows to examples: what the trainer and the rewards see of a row."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vlm_entropy.rewards.geometry import SPACES, Size

from .families import Family
from .prompts import format_question
from .rows import BadRow, Row

if TYPE_CHECKING:
    from datasets import Dataset

OUR_COLUMNS = (
    "prompt",
    "images",
    "solution",
    "problem",
    "image_path",
    "image_size",
    "input_size",
    "coordinate_space",
    "solution_space",
)
TRL_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
    "group",
    "group_size",
)
"""Names that TRL and our trainers pass to every reward."""


def to_example(
    row: Row, *, family: Family, processor: Any, task_type: str = "default", solution_space: str = "absolute"
) -> dict[str, Any]:
    """Turn a row into an example of TRL's GRPOTrainer.

    The row    Row("a.jsonl:1", ("img/7.jpg",), ((640, 480),), "Where is the cat?", "[10, 20, 30, 40]", {"id": 7})
    becomes, for Qwen2.5-VL and task type "plain",
        {"prompt": [{"role": "user", "content": "Where is the cat?"}], "images": ["img/7.jpg"],
         "solution": "[10, 20, 30, 40]", "problem": "Where is the cat?", "image_path": ["img/7.jpg"],
         "image_size": [640, 480], "input_size": [644, 476], "coordinate_space": "absolute_resized",
         "solution_space": "absolute", "id": 7}

    Args:
        row: a row of `read_rows`.
        family: family of the model that will answer.
        processor: its processor, which decides `input_size`.
        task_type: name of the prompt template.
        solution_space: coordinate space of the gold boxes, one of `rewards.geometry.SPACES` but `absolute_resized`.

    Returns:
        The example; sizes are (width, height) of the first image, None for a row of text. A row whose question asks
        for boxes in a space of its own says so in a column `coordinate_space`, which wins over the family's.

    Raises:
        ValueError: for an unknown task type or space, or a column of the row that has one of our names or TRL's.
    """
    if solution_space not in SPACES or solution_space == "absolute_resized":
        raise ValueError(f"solution_space is {solution_space!r}; allowed are absolute, relative_1000, relative_1.")
    space = row.columns.get("coordinate_space", family.space)
    if space not in SPACES:
        raise ValueError(f"{row.source}: coordinate_space is {space!r}; allowed are {', '.join(SPACES)}.")
    clash = sorted(set(row.columns) & {*OUR_COLUMNS, *TRL_ARGUMENTS} - {"coordinate_space"})
    if clash:
        raise ValueError(f"{row.source}: the column {clash[0]!r} has a name that the trainer uses; rename it.")
    size = row.image_sizes[0] if row.image_sizes else None
    return {
        "prompt": [{"role": "user", "content": format_question(row.question, task_type)}],
        "images": list(row.images),
        "solution": row.answer,
        "problem": row.question,
        "image_path": list(row.images),
        "image_size": None if size is None else list(size),
        "input_size": None if size is None else list(family.input_size(size, processor.image_processor)),
        "coordinate_space": space,
        "solution_space": solution_space,
        **row.columns,
    }


def _scalar_type(values: Iterable[Any]) -> str | None:
    """Return the Arrow type of values that are all text, all bool, all int or all float (or None), else None."""
    kinds = {type(value) for value in values if value is not None}
    names = {str: "string", bool: "bool", int: "int64", float: "float64"}
    return names.get(kinds.pop()) if len(kinds) == 1 else None


def build_dataset(
    rows: Sequence[Row],
    *,
    family: Family,
    processor: Any,
    task_type: str = "default",
    solution_space: str = "absolute",
) -> "Dataset":
    """Build the dataset of all rows; see `to_example` for its columns and arguments.

    `images` holds paths that are opened when a row is read, as RGB, turned upright by their EXIF orientation.
    A column that a row lacks is None there. A column of one scalar type keeps it; any other is stored as JSON and
    comes back as the values that were in the file. (Encoding here is not idle: the `Json` feature takes a string for
    JSON where it can, and would return "12" as 12.)
    """
    from datasets import Dataset, Features, Image, Json, List, Value

    examples = [
        to_example(row, family=family, processor=processor, task_type=task_type, solution_space=solution_space)
        for row in rows
    ]
    text, size = Value("string"), List(Value("int64"))
    features: dict[str, Any] = dict.fromkeys(OUR_COLUMNS, text)
    features |= {"prompt": List({"role": text, "content": text}), "images": List(Image(mode="RGB"))}
    features |= {"image_path": List(text), "image_size": size, "input_size": size}
    columns = {name: [example.get(name) for example in examples] for name in features}
    for name in dict.fromkeys(name for row in rows for name in row.columns if name not in OUR_COLUMNS):
        values = [row.columns.get(name) for row in rows]
        scalar = _scalar_type(values)
        features[name] = Json() if scalar is None else Value(scalar)
        columns[name] = [json.dumps(value) for value in values] if scalar is None else values
    return Dataset.from_dict(columns, features=Features(features))


def chat_tokens(
    messages: Sequence[dict[str, str]], image_sizes: Sequence[Size], *, family: Family, processor: Any
) -> tuple[int, int]:
    """Return (tokens of a prompt with its images, image tokens among them), without opening an image.

    Args:
        messages: chat messages of plain text; the images stand before the text of the first user message.
        image_sizes: (width, height) in pixels of each image.
        family, processor: as in `to_example`.
    """
    first = next(place for place, message in enumerate(messages) if message["role"] == "user")
    chat = [
        {
            "role": message["role"],
            "content": [
                *({"type": "image"} for _ in (image_sizes if place == first else ())),
                {"type": "text", "text": message["content"]},
            ],
        }
        for place, message in enumerate(messages)
    ]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    text_tokens = len(processor.tokenizer(text)["input_ids"])
    image_tokens = sum(family.image_tokens(size, processor) for size in image_sizes)
    # the text holds one placeholder per image
    return text_tokens + image_tokens + len(image_sizes) * (family.image_frame_tokens - 1), image_tokens


def prompt_tokens(row: Row, *, family: Family, processor: Any, task_type: str = "default") -> tuple[int, int]:
    """Return (tokens of the prompt with its images, image tokens among them), without opening an image."""
    messages = [{"role": "user", "content": format_question(row.question, task_type)}]
    return chat_tokens(messages, row.image_sizes, family=family, processor=processor)


def check_prompt_fits(
    rows: Iterable[Row],
    *,
    family: Family,
    processor: Any,
    task_type: str = "default",
    max_completion_length: int,
    context_length: int,
) -> list[BadRow]:
    """Return the rows whose prompt and longest completion together exceed the model's context.

    Args:
        rows: rows of `read_rows`.
        family, processor, task_type: as in `to_example`.
        max_completion_length: tokens kept free for the completion.
        context_length: tokens the model can attend to, `max_position_embeddings` of its text model.
    """
    bad_rows = []
    for row in rows:
        needed, images = prompt_tokens(row, family=family, processor=processor, task_type=task_type)
        if needed + max_completion_length > context_length:
            reason = (
                f"needs {needed} tokens ({images} of them image tokens) + {max_completion_length} for the completion, "
                f"the model's context is {context_length}."
            )
            bad_rows.append(BadRow(row.source, reason))
    return bad_rows
