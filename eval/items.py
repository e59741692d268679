"""From a data set on disk to the items of a benchmark, every one checked before a model loads."""

import hashlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from os.path import join
from pathlib import Path, PurePath
from typing import Any, TypeVar

from PIL import Image

from vlm_entropy.data.image_files import image_size
from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.data.loaders.records import Picture, Record, as_pictures
from vlm_entropy.data.rows import Row
from vlm_entropy.rewards.geometry import Size

from .protocols import Benchmark, Item

Taken = TypeVar("Taken")


def to_item(record: Record, images: str, *, place: int = 0) -> Item:
    """The item of a loader's record.

    The record {"id": 7, "image": "a.jpg", "platform": "web", "conversations": [{"from": "human", "value":
                "<image>close the window"}, {"from": "gpt", "value": [10, 20, 40, 60]}]}
    becomes    Item("7", "close the window", "[10, 20, 40, 60]", ("images/a.jpg",), (640, 480), {"platform": "web"})

    Args:
        record: of `data.loaders`.
        images: folder that its image paths start from; "" for none.
        place: of the record in its source, the id of one that has none.

    Raises:
        ValueError: for an image that cannot be read.
    """
    columns = {name: value for name, value in record.items() if name not in ("id", "image", "conversations")}
    question, answer = [turn["value"] for turn in record["conversations"] if turn.get("from") != "system"][:2]
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    pictures = [join(images, it) if isinstance(it, str) else it for it in as_pictures(record.get("image"))]
    return Item(
        id=str(record.get("id", place)),
        question=question.replace("<image>", "").strip(),
        answer=text.strip(),
        images=tuple(pictures),
        image_size=next(iter(picture_sizes(pictures)), None),
        columns=columns,
    )


def picture_sizes(pictures: Iterable[Picture]) -> list[Size]:
    """The stored (width, height) of each picture, in pixels.

    Raises:
        ValueError: for a file that is missing, cut off or no image.
    """
    return [_stored_size(picture) for picture in pictures]


@cache
def _stored_size(picture: Picture) -> Size:
    if isinstance(picture, str) and isinstance(reason := image_size(picture), str):
        raise ValueError(reason.removesuffix("."))
    try:
        with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the embedded image cannot be read: {error}") from error


def row_items(rows: Sequence[Row]) -> list[Item]:
    """The items of training rows, by "train.jsonl:7", with the folder where two files have the same name.

    The images are upright, as the trainers see them.
    """
    names = [PurePath(row.source).name for row in rows]
    if len(set(names)) < len(names):
        names = [row.source for row in rows]
    return [
        Item(name, row.question, row.answer, row.images, next(iter(row.image_sizes), None), row.columns)
        for name, row in zip(names, rows, strict=True)
    ]


def image_folder(benchmark: Benchmark, data: str) -> str:
    """The folder that the image paths of a data set start from, where its publisher puts it; "" if it is not there."""
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    places = [folder / name for name in benchmark.images]
    return str(next((place for place in places if place.is_dir()), ""))


def read_items(
    benchmark: Benchmark, data: str, *, source: str | None = None, split: str | None = None, images: str = ""
) -> list[Item]:
    """The items of a published data set, in its order.

    Args:
        benchmark: one of `benchmarks.BENCHMARKS`.
        data: file, folder or hub id, as the loader takes it.
        source: one of `benchmark.formats`; the first by default.
        split: of a source that has several.
        images: folder that image paths start from; by default that of `image_folder`.

    Raises:
        ValueError: for another format, what the loader refuses, an image that cannot be read, ids that stand there
            twice, and no item at all.

    Warns:
        UserWarning: if the data has not the published number of items.
    """
    source = source or benchmark.formats[0]
    if source not in benchmark.formats:
        raise ValueError(f"--format {source!r} is none of this benchmark's: {', '.join(benchmark.formats)}.")
    images = images or image_folder(benchmark, data)
    items = []
    for place, record in enumerate(LOADERS[source].read(data, split=split, images=images)):
        try:
            items.append(to_item(record, images, place=place))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"item {record.get('id', place)} of {data!r}: {error}.") from error
    if not items:
        raise ValueError(f"There is no item in {data!r}.")
    check_ids(items, data)
    published = benchmark.sizes.get(split)
    if published is not None and published != len(items):
        warnings.warn(
            f"{data!r} has {len(items)} items, the published data {published}: no number on it compares with "
            "published ones.",
            stacklevel=2,
        )
    return items


def check_ids(items: Sequence[Item], data: str) -> None:
    """Raise `ValueError` if two items have the same id."""
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise ValueError(f"{data!r} has {len(twice)} ids more than once, {twice[0]!r} first.")


def take(items: Sequence[Taken], limit: int | None, *, seed: int | None = None) -> list[Taken]:
    """The first `limit` items, or the first of those shuffled by `random.seed(seed); random.shuffle`, as VLM-R1 does.

    Raises:
        ValueError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    taken = list(items)
    if seed is not None:
        random.Random(seed).shuffle(taken)
    return taken[:limit]


def digest(values: Iterable[Any]) -> str:
    """First 16 hex digits of the SHA-256 of values, as JSON lines."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()[:16]


def items_hash(items: Sequence[Item]) -> str:
    """What makes two data sets the same: ids, questions and answers in order, whatever the format and the folder."""
    return digest([item.id, item.question, item.answer] for item in items)
