"""Visual-RFT's training sets: few-shot classes (ViRFT_CLS_*) and detection (ViRFT_COCO*, ViRFT_LVIS*).

Both are `save_to_disk` folders or parquet files with an embedded image, a `problem` that carries its own format
instructions, and a `solution`. https://github.com/Liuziyu77/Visual-RFT
"""

import json
import re
from collections.abc import Iterator, Mapping
from reprlib import repr as short
from typing import Any

from vlm_entropy.rewards.geometry import Size

from .boxes import Number, from_xyxy, numbers
from .records import Record, as_pictures, make_record, stored_size, with_ids, without_tags
from .tables import column, map_rows, read_table

NO_OBJECTS = {"no objects", "none", "[]"}
_CATEGORY = re.compile(r"category '(.+?)' in the image")


def classes_record(row: Mapping[str, Any]) -> Record:
    """Turn a row of ViRFT_CLS_* into a record.

    The row    {"image": b"...", "problem": "Which aircraft is it?", "solution": "<answer>707-320</answer>"}
    becomes    {"image": b"...", "conversations": [{"from": "human", "value": "<image>Which aircraft is it?"},
                                                   {"from": "gpt", "value": "707-320"}]}
    """
    answer = without_tags(column(row, "solution"), "solution")
    return make_record(column(row, "problem"), answer, image=column(row, "image"))


def to_pixels(position: Any, size: Size) -> list[Number]:
    """Turn [x1, y1, x2, y2] on the 0-1000 scale into pixels: x · width / 1000, y · height / 1000.

    A box without area, which rounding makes of a tiny object, stays one.

    Raises:
        ValueError: for anything but four numbers from 0 to 1000 with x1 <= x2 and y1 <= y2.
    """
    box = numbers(position, "Position", 4)
    if not all(0 <= edge <= 1000 for edge in box):
        raise ValueError(f"Position is {box}; numbers from 0 to 1000 are needed")
    return from_xyxy([edge * side / 1000 for edge, side in zip(box, (*size, *size), strict=True)], "Position")


def find_positions(solution: Any) -> list[Any]:
    """Return the `Position` of each object of a solution, in order; none for "No Objects".

    Raises:
        ValueError: for anything but a list, in Python's or JSON's quotes, of objects with a Position.
    """
    text = without_tags(solution, "solution")
    if text.lower() in NO_OBJECTS:
        return []
    try:
        objects = json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"solution is {short(text)}; a list of objects or 'No Objects' is needed") from error
    if not isinstance(objects, list) or not all(isinstance(found, dict) and "Position" in found for found in objects):
        raise ValueError(f"solution is {short(text)}; a list of objects with a Position is needed")
    return [found["Position"] for found in objects]


def detection_record(row: Mapping[str, Any], size: Size) -> Record:
    r"""Turn a row of ViRFT_COCO* or ViRFT_LVIS* with an image of `size` (width, height) into a record.

    The row, with an image of 640x480,
        {"image": b"...", "problem": "Detect all objects belonging to the category 'dog' in the image, ...",
         "solution": "[{'Position': [100, 250, 500, 750], 'Confidence': 1}]"}
    becomes
        {"image": b"...", "category": "dog", "coordinate_space": "relative_1000",
         "conversations": [{"from": "human", "value": "<image>Detect all objects belonging to the category 'dog' ..."},
                           {"from": "gpt", "value": "```json\n[{\"bbox_2d\": [64, 120, 320, 360]}]\n```"}]}
    with the answer "None" for no object. The gold Confidence, always 1, is dropped. The question asks for one
    category, so that the answer names none, and for boxes on 0 to 1000 whatever the model, hence `coordinate_space`.

    Raises:
        ValueError: for a problem that names no category, a solution that is no list of objects, or a wrong Position.
    """
    problem = column(row, "problem")
    named = _CATEGORY.search(problem) if isinstance(problem, str) else None
    if named is None:
        raise ValueError(f"problem is {short(problem)}; it must name the category 'x' in the image")
    boxes = [to_pixels(position, size) for position in find_positions(column(row, "solution"))]
    answer = f"```json\n{json.dumps([{'bbox_2d': box} for box in boxes])}\n```" if boxes else "None"
    image = column(row, "image")
    return make_record(problem, answer, image=image, category=named[1], coordinate_space="relative_1000")


def read_visual_rft_classes(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of a ViRFT_CLS_* set; see `classes_record`.

    Args:
        path, split: as in `read_table`.
        images: not used; the images are in the table.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [classes_record(row)], path=path))


def read_visual_rft_detection(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of a ViRFT_COCO* or ViRFT_LVIS* set, boxes in pixels of the image; see `detection_record`.

    Args:
        path, split: as in `read_table`.
        images: folder of the images, for a table that holds paths.
    """

    def records(row: dict[str, Any]) -> list[Record]:
        pictures = as_pictures(column(row, "image"))
        if len(pictures) != 1:
            raise ValueError(f"the row has {len(pictures)} images; one is needed")
        return [detection_record(row, stored_size(pictures[0], images))]

    return with_ids(map_rows(read_table(path, split=split), records, path=path))
