"""The VLM-R1 record that the loaders of maths, classes, detection and preferences yield, and how its parts are cut."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from reprlib import repr as short
from typing import Any

from PIL import ExifTags, Image

from vlm_entropy.rewards.geometry import Size
from vlm_entropy.rewards.parsing import find_answer

Record = dict[str, Any]
Picture = str | bytes
"""A path below the image folder, or an encoded image file."""


def as_text(value: Any, name: str) -> str:
    """Return a text without blanks around it.

    Raises:
        ValueError: for anything else, or an empty text.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {short(value)}; a text is needed")
    return value.strip()


def as_pictures(value: Any) -> list[Picture]:
    """Return the pictures of a cell that holds one, several or none; None and "" are none.

    Raises:
        ValueError: for an item that is neither a path nor the bytes of a file.
    """
    if value is None or value == "":
        return []
    pictures = value if isinstance(value, list) else [value]
    for picture in pictures:
        if not isinstance(picture, str | bytes) or not picture:
            raise ValueError(f"the image is {short(picture)}; a path or the bytes of an image file are needed")
    return pictures


def make_record(question: Any, answer: Any, /, *, image: Any = None, **columns: Any) -> Record:
    """Build one record.

    make_record("Is <image> a cat?", "yes", image=["a.jpg", "b.jpg"], id=7) is
        {"id": 7, "image": ["a.jpg", "b.jpg"],
         "conversations": [{"from": "human", "value": "<image><image>Is  a cat?"}, {"from": "gpt", "value": "yes"}]}

    Args:
        question: text; its own `<image>` markers are dropped, and one per image is put in front.
        answer: text.
        image: as in `as_pictures`; one picture stands alone, several are a list, none leaves `image` out.
        columns: `id` and the further columns.

    Raises:
        ValueError: for a question or answer that is no text or empty, or something that is no picture.
    """
    pictures = as_pictures(image)
    value = as_text(question.replace("<image>", "") if isinstance(question, str) else question, "the question")
    turns = [
        {"from": "human", "value": "<image>" * len(pictures) + value},
        {"from": "gpt", "value": as_text(answer, "the answer")},
    ]
    shown = {"image": pictures[0] if len(pictures) == 1 else pictures} if pictures else {}
    return {**columns, **shown, "conversations": turns}


def with_ids(records: Iterable[Record]) -> Iterator[Record]:
    """Give the records of a source without ids their position, from 0, as `id`."""
    for number, record in enumerate(records):
        yield {"id": number, **record}


def kept_columns(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return those of the named columns that the row has."""
    return {name: row[name] for name in names if name in row}


def without_tags(value: Any, name: str) -> str:
    """Return the text inside `<answer>` tags, or the whole text if it has none.

    Raises:
        ValueError: for no text, an empty one, or one tag without the other.
    """
    text = as_text(value, name)
    if "<answer>" not in text and "</answer>" not in text:
        return text
    answer = find_answer(text)
    if answer is None:
        raise ValueError(f"{name} is {short(text)}; <answer> and </answer> must stand around the answer")
    return as_text(answer, name)


def stored_size(picture: Picture, images: str) -> Size:
    """Return (width, height) in pixels of an image as it is stored, from its header.

    Raises:
        ValueError: for a file that is missing or no image, or one that EXIF turns or mirrors: its boxes may belong to
            the stored or to the shown picture.
    """
    file = BytesIO(picture) if isinstance(picture, bytes) else os.path.join(images, picture)
    name = "the embedded image" if isinstance(picture, bytes) else f"the image {str(file)!r}"
    try:
        with Image.open(file) as image:
            size = image.size
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if orientation != 1:
        raise ValueError(f"{name} has the EXIF orientation {orientation}; 1 is needed where a row has boxes")
    return size
