"""The think-then-answer format."""

import re
from collections.abc import Sequence
from typing import Any

from .parsing import completion_text

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SHAPE = re.compile(r"<think>.*</think>\s*+<answer>\s*+(?!</answer>).*</answer>", re.DOTALL)


def is_well_formed(text: str) -> bool:
    """Tell whether `text` is `<think>...</think>`, blanks, `<answer>...</answer>` with a non-blank answer.

    Blanks around the whole are ignored; each of the four tags occurs exactly once; the thinking may be empty.
    """
    return all(text.count(tag) == 1 for tag in _TAGS) and _SHAPE.fullmatch(text.strip()) is not None


def format_reward(completions: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[float]:
    """Score 1.0 for each completion that is exactly one think block and one answer block, else 0.0.

    Departs from VLM-R1's `re.fullmatch` of the same shape: surrounding blanks are forgiven, while an empty answer or
    a second copy of any of the four tags is not.

    Args:
        completions: strings or TRL's lists of messages, one per row.

    Returns:
        1.0 or 0.0 per row.
    """
    return [float(is_well_formed(completion_text(completion))) for completion in completions]
