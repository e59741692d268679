"""VLM-R1's own rules, as far as they do no harm: what `reward_compat="vlm_r1"` restores. Text and numbers in, and out.

Written after the behaviour of https://github.com/om-ai-lab/VLM-R1 at 90052f4; README.md lists each difference.
"""

import re
from collections.abc import Sequence

from .detection import overlaps
from .geometry import Box, iou
from .labelled_boxes import Detection

_INTEGER_BOX = re.compile(r"\[([0-9]{1,9}),\s*+([0-9]{1,9}),\s*+([0-9]{1,9}),\s*+([0-9]{1,9})\]")
_BETWEEN = re.compile(r"</think>\s*+<answer>")
_CHOICE = re.compile(r"(?<![A-Z])[A-Z](?=[.,?!:;]|$)")
_YES_NO = re.compile("yes|no")
MAX_CHARACTERS = 10_000
_ANSWER, _END = "<answer>", "</answer>"


def last_answer(text: str) -> str | None:
    """Return what stands between the last `</answer>` and the `<answer>` before it, or None."""
    end = text.rfind(_END)
    start = text.rfind(_ANSWER, 0, max(end, 0))
    return text[start + len(_ANSWER) : end] if start >= 0 else None


def clean_text(text: str) -> str:
    """Return a text in lower case without line breaks, blanks at the ends and dots at the end."""
    return re.sub(r"[\r\n]++", " ", text).strip().rstrip(".").lower()


def similarity(a: str, b: str) -> float:
    """Levenshtein ratio 2 · LCS(a, b) / (|a| + |b|), LCS the length of the longest common subsequence.

    0 if both are empty, or one has more than `MAX_CHARACTERS`: a ratio of nearly 0 to any ordinary gold.
    The subsequence is found with one bit per character of the shorter text (Hyyrö 2004), in |a| · |b| / 64 steps.
    """
    shorter, longer = sorted((a, b), key=len)
    if len(longer) > MAX_CHARACTERS:
        return 0.0
    places: dict[str, int] = {}
    for place, character in enumerate(shorter):
        places[character] = places.get(character, 0) | 1 << place
    full = (1 << len(shorter)) - 1
    rest = full
    for character in longer:
        both = rest & places.get(character, 0)
        rest = ((rest + both) | (rest - both)) & full
    total = len(a) + len(b)
    return 2.0 * (len(shorter) - rest.bit_count()) / total if total else 0.0


def find_marked_choice(text: str) -> str | None:
    """Return the only capital letter that no capital precedes and `. , ? ! : ;` or the end follows, or None."""
    letters = set(_CHOICE.findall(" ".join(text.split())))
    return letters.pop() if len(letters) == 1 else None


def find_first_yes_no(text: str) -> str | None:
    """Return the first "yes" or "no" in a text, in any case and inside words too, or None."""
    found = _YES_NO.search(text.lower())
    return found[0] if found else None


def find_integer_box(text: str) -> Box | None:
    """Return the first `[x1, y1, x2, y2]` of unsigned integers, without a blank after the bracket, or None."""
    found = _INTEGER_BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return x1, y1, x2, y2


def pixel_iou(a: Box, b: Box) -> float:
    """IoU, but 0 for an overlap of at most one pixel in width or height."""
    sides = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return iou(a, b) if min(sides) > 1.0 else 0.0


def has_answer_shape(text: str) -> bool:
    """Tell whether the whole text is `<think>...</think>`, blanks, `<answer>...</answer>`, the answer not blank."""
    between = _BETWEEN.search(text)
    if between is None or not (text.startswith("<think>") and text.endswith(_END)):
        return False
    return bool(text[between.end() : -len(_END)].strip())


def has_box_shape(text: str) -> bool:
    """Tell whether a think and an answer block stand somewhere, the latter with a box inside braces."""
    start = text.find("<think>")
    between = _BETWEEN.search(text, start) if start >= 0 else None
    if between is None:
        return False
    answer = text[between.end() : max(text.rfind(_END), between.end())]
    opening, closing = answer.find("{"), answer.rfind("}")
    return opening >= 0 and _INTEGER_BOX.search(answer, opening, max(closing, opening)) is not None


def first_come_weighted_sum(found: Sequence[Detection], gold: Sequence[Detection]) -> float:
    """0.7 · (sum of IoUs of right labels / n_gold) + 0.3 · (recall + precision) / 2, matched in the order of listing.

    Each detection takes the free gold box of any label that it overlaps most, if the IoU is at least 0.5. Without
    detections 0 (VLM-R1: 0.15), both empty 1.
    """
    if not found or not gold:
        return float(not found and not gold)
    values = overlaps(found, [one._replace(label=None) for one in gold])
    pairs = []
    for row in range(len(found)):
        column = int(values[row].argmax())
        if values[row, column] >= 0.5:
            pairs.append((row, column, float(values[row, column])))
            values[:, column] = 0.0
    total = sum(value for row, column, value in pairs if gold[column].label in (None, found[row].label))
    return 0.7 * total / len(gold) + 0.15 * (len(pairs) / len(gold) + len(pairs) / len(found))
