"""Parsers of model output: examples, and totality and speed on hostile strings."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import quickest

from vlm_entropy.rewards import get_rewards, iou_reward
from vlm_entropy.rewards.formats import format_reward
from vlm_entropy.rewards.parsing import completion_text, find_answer, find_box, find_point

N = 100_000
HOSTILE = [
    "[" * N,
    "(" * N,
    "[ " * (N // 2),
    "[" + " " * N,
    "[1" + " " * N,
    "[1,2,3,4" * (N // 8),
    "[1,2,3,4" + " " * N,
    "[" + "1" * N,
    "[" + "1," * (N // 2),
    "[1." * (N // 3),
    "[" + "1,2,3," * (N // 6) + "]",
    "[" + "٣" * N + ", 2, 3, 4]",
    "<answer>" * (N // 8),
    "</answer>" * (N // 9),
    "<think>" * (N // 7),
    "<answer>" * (N // 16) + "</answer>" * (N // 16),
    "</think><answer>" * (N // 16),
    "<think></think><answer>" + "a" * N + "</answer>b",
    "<think></think><answer>" + " " * N + "</answer>",
    "<think></think>" + " " * N + "x<answer>a</answer>",
    "\x00" * N,
    "\ud800" * N,
]
PARSERS = [find_answer, find_box, find_point, lambda text: format_reward([text])]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_parser_answers_a_hostile_string_within_50_ms(text):
    for parser in PARSERS:
        assert quickest(partial(parser, text), limit=0.05) < 0.05, parser


pieces = st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "[", "]", "(", ")", ",", "1", "-", ".", " "])


@given(st.one_of(st.text(), st.lists(pieces, max_size=40).map("".join)))
def test_every_parser_takes_any_string(text):
    for parser in PARSERS:
        parser(text)


@given(st.tuples(*[st.integers(-(10**8), 10**8)] * 4), st.text(alphabet="abc <>/,.", max_size=20))
def test_a_box_written_out_is_found_wherever_it_stands(box, words):
    assert find_box(f"{words}[{box[0]},{box[1]} , {box[2]}, {box[3]} ]{words}") == box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("<think>2+2</think>\n<answer> 4\n</answer>", " 4\n"),
        ("<think><answer>3</answer>?</think><answer>4</answer>", "4"),
        ("<answer>3</answer><answer>4</answer>", "3"),
        ("<answer></answer>", ""),
        ("<answer>3</answer></think>", None),
        ("</answer><answer>4", None),
        ("4", None),
        ("<ANSWER>4</ANSWER>", None),
    ],
)
def test_the_answer_is_the_first_complete_one_after_the_thinking(text, answer):
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ('```json\n[{"bbox_2d": [ 10,20 ,\n30, 40 ], "label": "cat"}]\n```', (10, 20, 30, 40)),
        ("[-1.5, +.25, 3., 4.0]", (-1.5, 0.25, 3.0, 4.0)),
        ("[[5, 6, 7, 8], [1, 2, 3, 4]]", (5, 6, 7, 8)),
        ("[9, 9, 1, 1]", (9, 9, 1, 1)),
        ("[1, 2, 3] [1, 2, 3, 4, 5] [6, 7, 8, 9]", (6, 7, 8, 9)),
        ("[1, 2, 3, 4", None),
        ("(1, 2, 3, 4)", None),
        ("[1 2 3 4]", None),
        ("[nan, nan, nan, nan]", None),
        ("[1e5, 2, 3, 4]", None),
        ("[1234567890, 2, 3, 4]", None),
        ("[٣, 2, 3, 4]", None),
        ("[1,, 2, 3, 4]", None),
        ("", None),
    ],
)
def test_the_box_is_the_first_bracket_of_four_plain_numbers(text, box):
    assert find_box(text) == box


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("click (12, 34.5)", (12, 34.5)),
        ("[ -1 , 2 ]", (-1, 2)),
        ("[1, 2, 3, 4] then (5, 6)", (5, 6)),
        ("(1, 2]", None),
        ("(1; 2)", None),
        ("12, 34", None),
    ],
)
def test_the_point_is_the_first_bracket_of_two_plain_numbers(text, point):
    assert find_point(text) == point


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>b</answer>\n", 1.0),
        ("<think></think><answer>b</answer>", 1.0),
        ("<think>a</think><answer> \n</answer>", 0.0),
        ("<think>a</think>so<answer>b</answer>", 0.0),
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer>.", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
        ("<think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer></answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_the_format_is_one_think_block_then_one_non_blank_answer(text, score):
    assert format_reward([text]) == [score]
    assert format_reward([[{"role": "assistant", "content": text}]], solution=["x"]) == [score]


def test_a_completion_may_be_a_string_or_messages_whose_last_is_the_answer():
    assert completion_text("a") == "a"
    assert completion_text([{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]) == "b"
    assert completion_text([{"role": "assistant", "content": None}]) == ""


def test_rewards_are_found_by_name_and_by_import_string():
    assert get_rewards(["format", "iou", "vlm_entropy.rewards.grounding:iou_reward"]) == [
        format_reward,
        iou_reward,
        iou_reward,
    ]


@pytest.mark.parametrize(
    "name", ["accurcy", "a:", ":b", "no_such_module_x:f", "math:no_such_function", "math:pi", ".m:f"]
)
def test_an_unknown_reward_is_named_with_what_is_allowed(name):
    with pytest.raises(ValueError, match=r"allowed are accuracy, .*, yes_no, or module:function") as raised:
        get_rewards(["format", name])
    assert repr(name) in str(raised.value)
