"""Parser of detections: a list of boxes with labels or confidences, the answer of an object detector in words.

[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]     VLM-R1, Qwen; bare or in a ```json fence
[{'Position': [10, 20, 30, 40], 'Confidence': 0.9}]  Visual-RFT; quotes of JSON or Python
None, [], No Objects                                 nothing to detect
"""

import json
import math
import re
from typing import Any, NamedTuple

from .geometry import Box

MAX_DETECTIONS = 100
"""COCO's limit per image. A longer list is malformed: matching it takes time, and its order must decide nothing."""
MAX_CHARACTERS = 30_000
"""A longer answer is malformed; `MAX_DETECTIONS` objects take about a third."""
_NOTHING = frozenset({"none", "[]", "no objects"})
_FENCE = "```json"
_STRING = re.compile(r""""(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?""", re.DOTALL)  # unclosed: to the end, once
_INNER = re.compile(r"""\\.|\"""", re.DOTALL)
NO_BOX: Box = (math.nan, math.nan, math.nan, math.nan)


class Detection(NamedTuple):
    """One listed object. A box that is missing or is not four finite numbers is `NO_BOX`, which matches nothing."""

    box: Box
    label: str | None
    """In lower case, blanks collapsed; None if there is none."""
    confidence: float | None
    """In [0, 1], None if there is none or it lies outside."""


def normalise_label(label: str) -> str:
    """Return a label in lower case, with single blanks."""
    return " ".join(label.casefold().split())


def _is_number(value: Any) -> bool:
    """Tell whether a JSON value is a finite number of ordinary size: below 1e9, as in `parsing`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _detection(item: Any) -> Detection:
    """Read one entry of the list; whatever it is, it counts as one detection."""
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    numbers: Any = fields.get("bbox_2d", fields.get("Position"))
    label: Any = fields.get("label")
    confidence: Any = fields.get("Confidence")
    is_box = isinstance(numbers, list) and len(numbers) == 4 and all(map(_is_number, numbers))
    box = (float(numbers[0]), float(numbers[1]), float(numbers[2]), float(numbers[3])) if is_box else NO_BOX
    return Detection(
        box,
        normalise_label(label) if isinstance(label, str) else None,
        float(confidence) if _is_number(confidence) and 0 <= confidence <= 1 else None,
    )


def _as_json(literal: str) -> str:
    r"""Write a quoted string of JSON or Python with JSON's quotes; its other escapes stay as they are."""
    if literal[0] == '"':
        return literal
    return '"' + _INNER.sub(lambda found: {'"': '\\"', "\\'": "'"}.get(found[0], found[0]), literal[1:-1]) + '"'


def _load(text: str) -> Any:
    """Return the value of JSON with either kind of quotes, None if it is none."""
    try:
        return json.loads(_STRING.sub(lambda found: _as_json(found[0]), text), strict=False)
    except (ValueError, RecursionError):
        return None


def find_fence(text: str) -> str | None:
    """Return what the last closed ```json fence of the text holds, or None."""
    end = text.rfind("```")
    start = text.rfind(_FENCE, 0, max(end, 0))
    return text[start + len(_FENCE) : end] if start >= 0 and "```" not in text[start + len(_FENCE) : end] else None


def find_detections(text: str) -> list[Detection] | None:
    """Return the objects that an answer lists, [] for one that says there are none, or None if it does neither.

    The list is the whole answer, or the content of its last ```json fence; one object may stand without brackets.
    Entries without a box count as detections that match nothing, but a list of only such entries is None, and so is
    one of more than `MAX_DETECTIONS`.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    fenced = find_fence(text)
    content = (text if fenced is None else fenced).strip()
    if normalise_label(content.strip(" .'\"")) in _NOTHING:
        return []
    value = _load(content)
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or len(items) > MAX_DETECTIONS:
        return None
    found = [_detection(item) for item in items]
    return found if not found or any(one.box is not NO_BOX for one in found) else None
