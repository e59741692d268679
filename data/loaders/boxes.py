"""Boxes of any source as xyxy in pixels of the stored image."""

import json
import math
from reprlib import repr as short
from typing import Any

from vlm_entropy.rewards.geometry import Size

Number = int | float
DECIMALS = 2  # COCO's own precision; hides the noise of adding floats


def numbers(value: Any, name: str, count: int | None = None) -> list[Number]:
    """Return a list of finite numbers, `count` of them if given; a JSON text of such a list is read.

    Raises:
        ValueError: for anything else.
    """
    try:
        values = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        values = None
    if (
        not isinstance(values, list | tuple)
        or not all(type(item) in (int, float) and abs(item) < math.inf for item in values)
        or (count is not None and len(values) != count)
    ):
        raise ValueError(f"{name} is {short(value)}; {'a list of' if count is None else count} numbers are needed")
    return list(values)


def _rounded(value: Number) -> Number:
    value = round(value, DECIMALS)
    return int(value) if value == int(value) else value


def from_xyxy(value: Any, name: str = "bbox") -> list[Number]:
    """Return [x1, y1, x2, y2] rounded to hundredths of a pixel, whole numbers as integers.

    Raises:
        ValueError: unless it is four numbers with x1 <= x2 and y1 <= y2.
    """
    x1, y1, x2, y2 = box = numbers(value, name, 4)
    if x1 > x2 or y1 > y2:
        raise ValueError(f"{name} is {box}; x1 <= x2 and y1 <= y2 are needed")
    return [_rounded(item) for item in box]


def from_xywh(value: Any, name: str = "bbox") -> list[Number]:
    """Return [x, y, x + width, y + height]; from_xywh([10, 20.5, 30, 40]) is [10, 20.5, 40, 60.5].

    Raises:
        ValueError: unless it is four numbers, the last two >= 0.
    """
    x, y, width, height = box = numbers(value, name, 4)
    if width < 0 or height < 0:
        raise ValueError(f"{name} is {box}; a width and a height >= 0 are needed")
    return from_xyxy([x, y, x + width, y + height], name)


def from_fractions(value: Any, size: Size, name: str = "bbox") -> list[Number]:
    """Return xyxy pixels of an xyxy box in fractions of (width, height).

    Raises:
        ValueError: unless it is four numbers in 0..1, in order.
    """
    box = numbers(value, name, 4)
    if not all(0 <= item <= 1 for item in box):
        raise ValueError(f"{name} is {box}; fractions of the image, 0 to 1, are needed")
    return from_xyxy([item * size[index % 2] for index, item in enumerate(box)], name)


def around(polygon: Any, name: str = "polygon") -> list[Number]:
    """Return the smallest box around a flat polygon [x0, y0, x1, y1, ...] of three points or more.

    Raises:
        ValueError: for anything else.
    """
    points = numbers(polygon, name)
    if len(points) < 6 or len(points) % 2:
        raise ValueError(f"{name} is {short(points)}; three points or more are needed, as x0, y0, x1, y1, ...")
    xs, ys = points[0::2], points[1::2]
    return from_xyxy([min(xs), min(ys), max(xs), max(ys)], name)
