"""Shared by the tests of the benchmarks of boxes and clicks: responses that no protocol may trip over."""

import json

from hypothesis import strategies as st

N = 100_000
INNER = [
    "",
    "[" * N,
    "[[" * (N // 4) + "]]" * (N // 4),
    "[1," * (N // 3),
    "[1, 2, 3," * (N // 9),
    "[1,2,3,4" * (N // 8),
    "[1, 2, 3, " + " " * N + "4",
    "[," * (N // 2),
    "[" + "," * N,
    "{" * (N // 2) + "}" * (N // 2),
    "{[1, 2]" * (N // 7),
    "{[1, 2, 3, 4]}\n" * (N // 15),
    "9" * N,
    "[" + "9" * N + ", 2, 3, 4]",
    "{[" + ", ".join(["9" * 5000] * 4) + "]}",
    "{[" + ", ".join(["9" * 5000] * 2) + "]}",
    "9" * 5000 + ", -" + "9" * 5000,
    "9" * 5000 + " " + "9" * 5000 + " -" + "9" * 5000 + " -" + "9" * 5000,
    "1." * (N // 2),
    "-" * N,
    "+1-" * (N // 3),
    "1" + " " * N,
    "1 " * (N // 2),
    "1," + "y" * N,
    "1, y" + " " * N,
    "<box>" * (N // 5),
    "<box>(1,2),(3," * (N // 14),
    "<box>(" + "9" * 5000 + ",2),(3,4)</box>",
    '"coordinate": [' * (N // 15),
    '"coordinate": [' + "1, " * (N // 3) + "1]",
    '"coordinate"' + " " * N + ":",
    "{'action': 'click', 'coordinate': " * (N // 34),
    "[NaN, NaN, NaN, NaN]",
    "[Infinity, -Infinity, 1e999, -1e999]",
    "[nan, inf, -inf, 1_0]",
    "[٣, ٣, ٣, ٣] ² ½ Ⅷ １",
    " " * N,
    "\u2003" * N,
    "\n" * N,
    "[\n" * (N // 2),
    "\x00" * N,
    "\ud800" * N,
    "<think>" * (N // 7),
    "<answer>" * (N // 8),
    "<tool_call>" * (N // 11),
    "</think><answer>" * (N // 16),
]
HOSTILE = [
    *INNER,
    *(f"<answer>{inner}</answer>" for inner in INNER),
    *(f"</think><tool_call>{inner}</tool_call>" for inner in INNER),
]
"""Each in bounded time, and no hit."""

_PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<box>", "</box>", "box", "[", "]",
    "(", ")", "{", "}", ",", ", ", " ", "\n", "-", "+", ".", "0", "1", "5", "25", "50", "99", "100", "500", "1000",
    "0.5", "1e9", "nan", "inf", "x=", "y: ", '"coordinate": ', "'action': 'click', ", "'coordinate': ", "[-1, -1]",
    '{"bbox_2d": [0, 0, 100, 100]}', "{'action': 'click', 'coordinate': [5, 5]}", "٣", "\ud800",
]  # fmt: skip
RESPONSES = st.one_of(st.text(), st.lists(st.sampled_from(_PIECES), max_size=30).map("".join))


def judged(protocol, item, text, view):
    """Score a response, and check what holds of any: the same values for all, in range, no hit without an answer."""
    score = protocol.score(item, text, view)
    assert list(score.values) == list(protocol.score(item, "", view).values)
    assert all(0.0 <= value <= 1.0 for value in score.values.values())
    assert (score.parsed is None) == (score.values["wrong_format"] == 1.0)
    leading = next(iter(score.values))
    assert score.values[leading] <= 1.0 - score.values["wrong_format"]
    json.dumps(score.values)
    return score
