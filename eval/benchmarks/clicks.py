"""Clicks: how each protocol reads one in a response, and when a click hits its target."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from vlm_entropy.eval.protocols import Item, View
from vlm_entropy.rewards.geometry import Box, Point, point_in_box
from vlm_entropy.rewards.gui import CLICK
from vlm_entropy.rewards.parsing import find_action, find_answer, read_number

from .places import after_thinking, first_answer, gold_box

DECIMALS = 6  # of a pixel: float rounding in a conversion moves no point over a border
REFUSAL = "refusal"

_NUMBER = re.compile(r"-?\d++\.?\d*+")
_TAGGED = re.compile(r"<box>\((\d++),(\d++)\),\((\d++),(\d++)\)</box>")
_PLAIN = r"(?:\d++(?:\.\d++)?+|\.\d++)"
_PAIR = re.compile(
    rf"((?:[-+]|(?<!\d)){_PLAIN})[,;\s]++(?:y\s*+[:=]?+\s*+)?+([-+]?+{_PLAIN})",  # (?<!\d) keeps the time linear
    re.IGNORECASE,
)
_INTEGERS = re.compile(r"\[(\d++),\s*+(\d++)\]")
_COORDINATE = re.compile(r'"coordinate"\s*+:\s*+\[([^\[\]]*+)\]')


class Click(NamedTuple):
    """The place of a click as written, and the coordinate space that the protocol reads it in."""

    point: Point
    space: str


def _centre(numbers: Sequence[float]) -> Point | None:
    """Return the point of two numbers, the centre of the box of four, None for any other count."""
    if len(numbers) not in (2, 4):
        return None
    xs, ys = numbers[0::2], numbers[1::2]
    return sum(xs) / len(xs), sum(ys) / len(ys)


def read_seeclick(text: str, view: View) -> Click | None:
    """Return the click by SeeClick's rules, or None, its "wrong format".

    With "box" anywhere in the response it is the centre of the first `<box>(x1,y1),(x2,y2)</box>`, thousandths
    without blanks. Else all numbers of the response count, as fractions: two are a point and four a box.
    """
    if "box" in text:
        found = _TAGGED.search(text)
        point = _centre([float(number) for number in found.groups()]) if found else None
        return Click(point, "relative_1000") if point else None
    point = _centre([float(number) for number in _NUMBER.findall(text)])
    return Click(point, "relative_1") if point else None


def read_mmbench(text: str, view: View) -> Click | None:
    """Return the first two numbers with commas, semicolons or blanks between them, or None.

    They may be named, `x=0.1, y=0.2`, but not in quotes. Pixels of the stored image if one of them is above 1, else
    fractions.
    """
    found = _PAIR.search(text)
    if found is None:
        return None
    x, y = map(float, found.groups())
    return Click((x, y), "absolute" if x > 1 or y > 1 else "relative_1")


def read_ui_r1(text: str, view: View) -> Click | None:
    """Return the click by UI-R1's rules, or None: of the first line of the first `<answer>` that has one, the last.

    A click is `[x, y]` of integers without a sign, after a `{` and before a `}` of its line; the action is not read.
    """
    for line in (first_answer(text) or "").split("\n"):
        pairs = _INTEGERS.findall(line.partition("{")[2].rpartition("}")[0])
        if pairs:
            x, y = map(float, pairs[-1])
            return Click((x, y), view.space)
    return None


def read_tool_call(text: str, view: View) -> Click | None:
    """Return the click of the first `<tool_call>` after the thinking, or None.

    Its JSON has one `"coordinate"` of two plain numbers, or of four, a box whose centre counts; the action is not
    read.
    """
    call = after_thinking(text).partition("<tool_call>")[2].partition("</tool_call>")[0]
    lists = _COORDINATE.findall(call)
    written = lists[0].split(",") if len(lists) == 1 else []
    numbers = [number for number in map(read_number, written) if number is not None]
    point = _centre(numbers) if len(numbers) == len(written) else None
    return Click(point, view.space) if point else None


def read_action(text: str, view: View) -> Click | None:
    """Return the place of the first action in the `<answer>` after the thinking, if that is a click; else None."""
    answer = find_answer(text)
    found = None if answer is None else find_action(answer)
    if found is None or found.action.strip() != CLICK or found.coordinate is None:
        return None
    return Click(found.coordinate, view.space)


def in_polygon(point: Point, polygon: Sequence[float]) -> bool:
    """Tell whether a point lies in a flat polygon [x0, y0, x1, y1, ...], by the even-odd rule of ray casting.

    A ray to the right crosses an odd number of edges. An edge takes its upper end and not its lower one, so left and
    top borders are inside, right and bottom borders outside.
    """
    x, y = point
    xs, ys = polygon[0::2], polygon[1::2]
    crossings = 0
    for x1, y1, x2, y2 in zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True):
        if (y1 > y) != (y2 > y):
            crossings += x < x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return crossings % 2 == 1


def on_border(point: Point, polygon: Sequence[float]) -> bool:
    """Tell whether a point lies on an edge of a flat polygon, ends included."""
    x, y = point
    xs, ys = polygon[0::2], polygon[1::2]
    return any(
        (x2 - x1) * (y - y1) == (y2 - y1) * (x - x1)
        and point_in_box(point, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        for x1, y1, x2, y2 in zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    )


def _in_interior(point: Point, box: Box) -> bool:
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def is_hit(point: Point, item: Item, *, borders: bool) -> bool:
    """Tell whether a click at `point`, in pixels of the stored image, is right.

    A box holds its four borders, a polygon its left and top ones. Where the item is to be refused, the click must
    refuse, and it does so if both its coordinates are below 0.

    Args:
        point: compared after rounding to a millionth of a pixel; NaN hits nothing.
        item: its column `polygon` if there is one, else its answer, is the target; or `box_type` is "refusal".
        borders: False takes all borders from the target.
    """
    x, y = round(point[0], DECIMALS), round(point[1], DECIMALS)
    if item.columns.get("box_type") == REFUSAL:
        return x < 0 and y < 0
    polygon = item.columns.get("polygon")
    if polygon:
        return in_polygon((x, y), polygon) and (borders or not on_border((x, y), polygon))
    return point_in_box((x, y), gold_box(item)) if borders else _in_interior((x, y), gold_box(item))
