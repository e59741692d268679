"""Shaping: rewards on length and repetition, blind to whether the answer is right. Add them to one that is not."""

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from .parsing import completion_text, find_answer

MAX_TOKENS = 1024
"""Tokens at which `length_reward` reaches its lowest value, as in VLM-R1."""
NGRAM = 6
"""Words per n-gram of `repetition_reward`, as in VLM-R1."""


def length_bonus(tokens: int) -> float:
    """0.5 + 0.5 · (1 + cos(π n / 1024)) / 2 of n tokens, n clamped at 1024: from 1 for none to 0.5 from there on."""
    return 0.5 + 0.25 * (1.0 + math.cos(math.pi * min(tokens, MAX_TOKENS) / MAX_TOKENS))


def length_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    completion_ids: Sequence[Sequence[int]] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion by how short it is: `length_bonus` of its tokens, 0.0 for a blank completion.

    VLM-R1 means it for right answers only, and by a slip applies it to all; this reward cannot know what is right, so
    it pays a short wrong answer like a short right one. Departs from VLM-R1, which does not clamp (2048 tokens earn as
    much as none) and gives an empty completion the maximum.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        completion_ids: TRL's token ids, one list per row.

    Returns:
        0.0 or a number in [0.5, 1] per row; None without token ids.
    """
    if completion_ids is None:
        return [None] * len(completions)
    texts = map(completion_text, completions)
    return [length_bonus(len(ids)) if text.strip() else 0.0 for text, ids in zip(texts, completion_ids, strict=True)]


def _list_entries(text: str) -> list[str] | None:
    """Return the entries of the JSON list in the answer, each written out, or None if there is none.

    The list runs from the first `[` to the last `]`. Of an entry with `bbox_2d` only that and its `label` are kept.
    """
    answer = find_answer(text) or ""
    listed = answer[answer.find("[") : answer.rfind("]") + 1] if "[" in answer else ""
    try:
        entries = json.loads(listed)
        boxed = [isinstance(entry, dict) and "bbox_2d" in entry for entry in entries]
        kept = [[entry["bbox_2d"], entry.get("label")] if box else entry for entry, box in zip(entries, boxed)]
        return [repr(entry) for entry in kept]
    except (ValueError, RecursionError):
        return None


def _repeated_share(items: Iterable[Hashable], count: int) -> float:
    """Share of `count` items that occurred before: 1 - distinct / all, 0 for none."""
    return 1.0 - len(set(items)) / count if count > 0 else 0.0


def repetition_reward(completions: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[float | None]:
    """Score each completion with minus the share of what it repeats, 1 - distinct / all.

    If the answer is a JSON list, over its entries, where only `bbox_2d` and `label` tell two boxes apart; otherwise
    over the runs of six words in the whole completion, in lower case. Departs from VLM-R1 in that a list is looked
    for in the `<answer>` only and that broken JSON is not repaired; an entry that is no box counts as a whole.

    Args:
        completions: strings or TRL's lists of messages, one per row.

    Returns:
        One number in (-1, 0] per row; 0.0 for fewer than six words, and for an empty list.
    """

    def share(text: str) -> float:
        entries = _list_entries(text)
        if entries is not None:
            return _repeated_share(entries, len(entries))
        words = text.lower().split()
        return _repeated_share(zip(*(words[start:] for start in range(NGRAM))), len(words) - NGRAM + 1)

    return [0.0 - share(completion_text(completion)) for completion in completions]


class SoftOverlong:
    """DAPO's soft overlong punishment, eq. 13 of https://arxiv.org/abs/2503.14476, as a reward that can be pickled.

    With n tokens: 0 up to L - C, (L - C - n) / C up to L, and -1 beyond. No departure.

    Args:
        max_length: L, tokens; from there on the punishment is full. At most the run's `max_completion_length`, or it
            never is.
        cache: C, tokens before L over which the punishment grows.

    Raises:
        ValueError: unless 0 < cache <= max_length.
    """

    def __init__(self, *, max_length: int, cache: int) -> None:
        if not 0 < cache <= max_length:
            raise ValueError(f"cache is {cache}; a number of tokens from 1 to max_length, {max_length}, is allowed.")
        self.__name__ = "soft_overlong_reward"
        self.max_length = max_length
        self.cache = cache

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **kwargs: Any
    ) -> list[float]:
        """Score each completion by the number of its token ids, in [-1, 0]."""
        free = self.max_length - self.cache
        return [max(-1.0, min(0.0, (free - len(ids)) / self.cache)) for ids in completion_ids]
