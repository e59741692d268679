"""Which part of a response each of its tokens belongs to: the thinking, the answer, or the numbers in the answer."""

import re
from collections.abc import Sequence
from itertools import accumulate

PARTS = ("other", "think", "answer", "coordinate")
"""coordinate: a token of the answer that holds a digit. answer: one that holds none. other: tags, and what stands
between thinking and answer."""

_DIGIT = re.compile("[0-9]")


def token_parts(pieces: Sequence[str]) -> list[str]:
    """The part, one of `PARTS`, of each token of a response.

    The thinking ends with the last `</think>`, as `parsing.find_answer` reads it, or with the response if it is never
    closed. The answer is what the first `<answer>` after it holds; without that tag, all that follows the thinking. A
    token belongs to the part in which its first character stands.

    token_parts(["<", "think", ">", "left", "</think>", "<answer>", "[", "7", "]", "</answer>"]) is
    ["other"] * 3 + ["think"] + ["other"] * 2 + ["answer", "coordinate", "answer", "other"].

    Args:
        pieces: the text of each token in order; pieces of a vocabulary ("Ġleft", "▁left") do as well.
    """
    text = "".join(pieces)
    opened, closed = text.find("<think>"), text.rfind("</think>")
    begins = opened + len("<think>") if opened >= 0 else 0
    if closed >= 0:
        ends, rest = closed, closed + len("</think>")
    else:
        ends = rest = len(text) if opened >= 0 else 0
    tag = text.find("<answer>", rest)
    first = tag + len("<answer>") if tag >= 0 else rest
    last = text.find("</answer>", first)
    last = last if last >= 0 else len(text)
    starts = accumulate(map(len, pieces), initial=0)
    return [
        "think"
        if begins <= start < ends
        else ("coordinate" if _DIGIT.search(piece) else "answer")
        if first <= start < last
        else "other"
        for piece, start in zip(pieces, starts)
    ]
