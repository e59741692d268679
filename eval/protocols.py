"""What a benchmark is: its items, how a model is asked, and how an answer is scored. No model, no image, no file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vlm_entropy.rewards.geometry import Size

Message = dict[str, str]
"""{"role": "system" or "user", "content": text}; the item's images stand before the text of the first user message."""


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, as its loader reads it."""

    id: str
    """Unique in the benchmark."""
    question: str
    """The data set's own text, without `<image>` markers."""
    answer: str
    """The gold answer; a box is the JSON of xyxy in pixels of the stored image."""
    images: tuple[str | bytes, ...] = ()
    """Paths with their folder, or encoded image files."""
    image_size: Size | None = None
    """Stored (width, height) of the first image."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other column of the record."""
    unit: str | None = None
    """What is drawn independently: the id of the data set's item where that asks several questions, else None."""


@dataclass(frozen=True)
class View:
    """What of a model an item's prompt and score may depend on."""

    model_type: str
    """`config.model_type` of transformers, a key of `data.FAMILIES`."""
    space: str
    """Coordinate space the model answers in, one of `rewards.SPACES`."""
    input_size: Size | None = None
    """(width, height) in pixels that coordinates in space `absolute_resized` are measured against."""


class Score(NamedTuple):
    """What one response is worth."""

    values: dict[str, float]
    """By metric, the protocol's own first and the stricter readings after it; the same names for every item."""
    parsed: str | None
    """The answer that was read, None if there was none. Equal texts are equal votes of a majority."""
    detail: Any = None
    """What `Protocol.totals` needs beside the values."""


class Reference(NamedTuple):
    """A published number that a protocol's own compares with."""

    model: str
    metric: str
    value: float
    """On the scale of the metric here, shares in [0, 1]."""
    source: str
    split: str | None = None


def no_cells(item: Item) -> dict[str, str]:
    return {}


def no_totals(items: Sequence[Item], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Protocol:
    """One published way to ask and to score."""

    source: str
    """Whose rules these are, and every departure from them."""
    prompt: Callable[[Item, View], list[Message]]
    score: Callable[[Item, str, View], Score]
    """Total: any response gets a score, one that cannot be read the lowest."""
    cells: Callable[[Item], dict[str, str]] = no_cells
    """Groups whose means are reported beside the overall one, {"platform": "web", "type": "icon"}."""
    totals: Callable[[Sequence[Item], Sequence[Sequence[Score]]], dict[str, float]] = no_totals
    """Figures of the whole set that are no mean over items; `scores[i]` are those of item i, one per sample."""
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    references: tuple[Reference, ...] = ()


def one_item(item: Item) -> list[Item]:
    return [item]


@dataclass(frozen=True)
class Benchmark:
    """A data set with the protocols that are used on it."""

    formats: tuple[str, ...]
    """Names of `data.loaders.LOADERS` that read it; the first is the default."""
    protocols: dict[str, Protocol]
    """By name; the first is the default."""
    sizes: Mapping[str | None, int] = field(default_factory=dict)
    """Published number of items by split (None: of all of them), to warn of another one."""
    expand: Callable[[Item], list[Item]] = one_item
    """The questions that one item of the data set asks, such as both orders of two responses."""
    images: tuple[str, ...] = ()
    """Where the published data has its images, relative to the folder that is named or that the file is in; the first
    that is there is taken where the caller names none, and without any the paths are taken as they are."""
