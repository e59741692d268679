"""Formats: think, then answer, in the three forms that the methods ask for."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .parsing import BOXED, completion_text, find_answer, find_box, find_boxed

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SHAPE = re.compile(r"<think>.*</think>\s*+<answer>\s*+(?!</answer>).*</answer>", re.DOTALL)


def is_well_formed(text: str) -> bool:
    """Tell whether `text` is `<think>...</think>`, blanks, `<answer>...</answer>` with a non-blank answer.

    Blanks around the whole are ignored; each of the four tags occurs exactly once; the thinking may be empty.
    """
    return all(text.count(tag) == 1 for tag in _TAGS) and _SHAPE.fullmatch(text.strip()) is not None


def is_well_formed_box(text: str) -> bool:
    """Tell whether `text` is well formed (see `is_well_formed`) and its answer holds a box (see `find_box`)."""
    return is_well_formed(text) and find_box(find_answer(text) or "") is not None


def is_well_formed_boxed(text: str) -> bool:
    r"""Tell whether `text` is `<think>...</think>` and then some text with one `\boxed{...}` that is not blank.

    Blanks around the whole are ignored; each tag occurs exactly once; what stands in the thinking does not matter.
    """
    if any(text.count(tag) != 1 for tag in _TAGS[:2]) or not text.lstrip().startswith("<think>"):
        return False
    after = text.partition("</think>")[2]
    return after.count(BOXED) == 1 and bool((find_boxed(after) or "").strip())


def _score(completions: Sequence[str | list[dict[str, Any]]], test: Callable[[str], bool]) -> list[float | None]:
    return [float(test(completion_text(completion))) for completion in completions]


def format_reward(completions: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[float | None]:
    """Score 1.0 for each completion that is exactly one think block and one answer block, else 0.0.

    Departs from VLM-R1's `re.fullmatch` of the same shape: surrounding blanks are forgiven, while an empty answer or
    a second copy of any of the four tags is not.

    Args:
        completions: strings or TRL's lists of messages, one per row.

    Returns:
        1.0 or 0.0 per row.
    """
    return _score(completions, is_well_formed)


def box_format_reward(completions: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[float | None]:
    """Score 1.0 for each completion in the format of `format_reward` whose answer holds a box, else 0.0.

    The box is `[x1, y1, x2, y2]` as `iou_reward` reads it, in JSON or plain. Departs from VLM-R1, which searches the
    tags anywhere in the completion and, for Qwen, wants four unsigned integers inside braces.

    Args:
        completions: strings or TRL's lists of messages, one per row.

    Returns:
        1.0 or 0.0 per row.
    """
    return _score(completions, is_well_formed_box)


def boxed_format_reward(completions: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[float | None]:
    r"""Score 1.0 for each completion that thinks in `<think>` and then answers in one `\boxed{...}`, else 0.0.

    Departs from NoisyRollout's full match of the same shape, which takes unbalanced braces, an empty box, several
    boxes and repeated tags.

    Args:
        completions: strings or TRL's lists of messages, one per row.

    Returns:
        1.0 or 0.0 per row.
    """
    return _score(completions, is_well_formed_boxed)
