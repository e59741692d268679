"""Parsers of model output, one per answer format, used by the rewards and by the evaluation alike.

All are total: any string gives a value or None, in time linear in its length. Numbers are written with ASCII digits,
at most nine before and nine after the point, with an optional sign; `1e5`, `½`, `٣` and `1234567890` are no numbers.
"""

import re
from typing import Any

from .geometry import Box, Point

_NUMBER = r"([+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))"
_COMMA = r"\s*+,\s*+"
_BOX = re.compile(rf"\[\s*+{_COMMA.join([_NUMBER] * 4)}\s*+\]", re.ASCII)
_POINT = re.compile(rf"\[\s*+{_NUMBER}{_COMMA}{_NUMBER}\s*+\]|\(\s*+{_NUMBER}{_COMMA}{_NUMBER}\s*+\)", re.ASCII)


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """Return the text of one completion as TRL passes it: a string, or messages of which the last is the answer."""
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


def find_answer(text: str) -> str | None:
    """Return what stands between the first `<answer>` and the `</answer>` after it, or None if there is no such pair.

    With a `</think>` in the text only the part after the last one counts, so an answer quoted while thinking does not.
    """
    think = text.rfind("</think>")
    start = text.find("<answer>", max(think, 0))
    end = text.find("</answer>", start) if start >= 0 else -1
    return text[start + len("<answer>") : end] if end >= 0 else None


def find_box(text: str) -> Box | None:
    """Return the first `[x1, y1, x2, y2]` of exactly four plain numbers, or None.

    A reversed or empty box is returned as written, and `iou` scores it 0: a wrong answer, not a missing one.
    """
    found = _BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return x1, y1, x2, y2


def find_point(text: str) -> Point | None:
    """Return the first `[x, y]` or `(x, y)` of exactly two plain numbers, or None; a box is no point."""
    found = _POINT.search(text)
    if found is None:
        return None
    x, y = (float(number) for number in found.groups() if number is not None)
    return x, y
