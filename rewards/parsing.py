"""Parsers of model output, one per answer format, used by the rewards and by the evaluation alike.

All are total: any string gives a value or None, in time linear in its length. Numbers are written with ASCII digits,
at most nine before and nine after the point, with an optional sign; `1e5`, `½`, `٣` and `1234567890` are no numbers.
`find_answer`, `find_boxed` and `find_final_answer` take a completion and give its answer; the others take an answer.
"""

import json
import re
from itertools import accumulate, repeat
from typing import Any, NamedTuple

from .geometry import Box, Point

_NUMBER = r"([+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))"
_COMMA = r"\s*+,\s*+"
_BOX = re.compile(rf"\[\s*+{_COMMA.join([_NUMBER] * 4)}\s*+\]", re.ASCII)
_POINT = re.compile(rf"\[\s*+{_NUMBER}{_COMMA}{_NUMBER}\s*+\]|\(\s*+{_NUMBER}{_COMMA}{_NUMBER}\s*+\)", re.ASCII)

BOXED = "\\boxed{"
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_BRACES = {"{": 1, "}": -1}

_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
_VALUE = rf"""(?:{_STRING}|[\[(][^\[\](){{}}"']*+[\])]|[^\s,:\[\](){{}}"']++)"""
_PAIR = re.compile(rf"({_STRING})\s*+:\s*+({_VALUE})", re.DOTALL)
_OBJECT = re.compile(rf"\{{(?:\s*+{_STRING}\s*+:\s*+{_VALUE}\s*+(?:,|(?=\}})))*+\s*+\}}", re.DOTALL)
_QUOTE = re.compile(r'\\.|"', re.DOTALL)

_LONE_CHOICE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_LEADING_CHOICE = re.compile(r"(?:\(([A-Z])\)[.:]?|([A-Z])[.:)])\s")
_MARKED_CHOICE = re.compile(r"(?<![^\s,;/(])([A-Z])[.:)](?![^\s,;.])")
_YES_NO = re.compile(r"(?<![\w-])(?:yes|no)(?![\w-])")
_VERDICT = re.compile(r"(?:(?:answer|response)\s++)?[(\[]{0,2}([12])[)\]]{0,2}\.?", re.IGNORECASE)


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


def find_boxed(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}`, braces balanced (`\{` is no brace), or None.

    Only the part after the last `</think>` counts, and nothing does inside a `<think>` that is never closed.
    """
    start = text.rfind(BOXED)
    think = text.rfind("</think>")
    if start < max(think, 0) or text.find("<think>", max(think, 0), start) >= 0:
        return None
    rest = text[start + len(BOXED) :]
    depths = list(accumulate(map(_BRACES.get, _ESCAPE.sub("  ", rest), repeat(0)), initial=1))  # before each character
    return rest[: depths.index(0) - 1] if 0 in depths else None


def find_final_answer(text: str) -> str | None:
    r"""Return the answer of a completion in either convention, `<answer>...</answer>` or `\boxed{...}`, or None.

    With both, the box in the `<answer>` counts, and an `<answer>` without a box counts as it is.
    """
    answer = find_answer(text)
    boxed = find_boxed(text if answer is None else answer)
    return answer if boxed is None else boxed


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


def read_number(text: str) -> float | None:
    """Return the value of a text that is one plain number and blanks around it, else None."""
    stripped = text.strip()
    return float(stripped) if re.fullmatch(_NUMBER, stripped) else None


class Action(NamedTuple):
    """One GUI action as written: its name, place and text, None where not given or not of the right form."""

    action: str
    coordinate: Point | None
    input_text: str | None


def _unquote(literal: str) -> str | None:
    r"""Return the text of a quoted string of JSON or Python, None if it holds an escape that JSON does not know."""
    if literal[0] not in "\"'":
        return None
    body = _QUOTE.sub(lambda found: {'"': '\\"', "\\'": "'"}.get(found[0], found[0]), literal[1:-1])
    try:
        return json.loads(f'"{body}"', strict=False)
    except ValueError:
        return None


def find_action(text: str) -> Action | None:
    """Return the action `{'action': 'click', 'coordinate': [x, y], 'input_text': '...'}` at the first `{`, or None.

    JSON and Python quotes are read alike, other keys are passed over. None if that object is not flat and complete,
    names a key twice, or has no quoted `action`.
    """
    start = text.find("{")
    found = _OBJECT.match(text, start) if start >= 0 else None
    pairs = _PAIR.findall(found[0]) if found else []
    values = {key[1:-1]: value for key, value in pairs}
    if len(values) < len(pairs):
        return None
    action = _unquote(values.get("action", "None"))
    if action is None:
        return None
    return Action(action, find_point(values.get("coordinate", "")), _unquote(values.get("input_text", "None")))


def find_choice(text: str) -> str | None:
    r"""Return the chosen letter, A to Z, or None: `B`, `b`, `(B)`, `B.`, `\boxed{B}`, or `B: text` and `(B) text`.

    A choice in the thinking does not count. A second marked letter (`A. B.`, `A: cat B: dog`) makes it None.
    """
    boxed = find_boxed(text)
    answer = (text.rpartition("</think>")[2] if boxed is None else boxed).strip()
    lone = _LONE_CHOICE.fullmatch(answer)
    if lone:
        return lone[1].upper()
    leading = _LEADING_CHOICE.match(answer)
    letters = {leading[1] or leading[2], *_MARKED_CHOICE.findall(answer, leading.end())} if leading else set()
    return letters.pop() if len(letters) == 1 else None


def find_yes_no(text: str) -> str | None:
    """Return "yes" or "no" if exactly one of them is a word of the text, in any case, else None."""
    words = set(_YES_NO.findall(text.lower()))
    return words.pop() if len(words) == 1 else None


def find_verdict(text: str) -> int | None:
    """Return 1 or 2 if the text is that digit alone, as in `1`, `(1)`, `[[2]]`, `2.` or `Answer 1`, else None."""
    found = _VERDICT.fullmatch(text.strip())
    return int(found[1]) if found else None
