"""What a model may write: no text raises, takes long, leaves the range or earns by being malformed; and each known
exploit of other code bases earns nothing here."""

import math
import time
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import quickest

from vlm_entropy.rewards import agreement, choices, classes, formats, grounding, gui, pointing, preference, shaping
from vlm_entropy.rewards.parsing import (
    find_action,
    find_answer,
    find_box,
    find_boxed,
    find_choice,
    find_final_answer,
    find_point,
    find_verdict,
    find_yes_no,
    read_number,
)

PLACE = {"solution": ["[10, 10, 20, 20]"], "image_size": [(100, 50)]}
GROUP = {"group": [0], "group_size": [1], "image_size": [(100, 50)]}
WRONG_BOX, WRONG_POINT = "[80, 40, 90, 45]", "[90, 45]"
WRONG_CLICK = "[{'action': 'click', 'coordinate': [90, 45], 'input_text': 'no'}]"

# reward, its columns, its range, an honest wrong answer
JUDGED = [
    (grounding.iou_reward, PLACE, (0.0, 1.0), WRONG_BOX),
    (grounding.giou_reward, PLACE, (-1.0, 1.0), WRONG_BOX),
    (pointing.point_in_box_reward, PLACE, (0.0, 1.0), WRONG_POINT),
    (pointing.box_centre_reward, PLACE, (0.0, 1.0), WRONG_BOX),
    (gui.gui_action_name_reward, {"action": ["scroll"]}, (0.0, 1.0), WRONG_CLICK),
    (gui.gui_coordinate_reward, PLACE, (0.0, 1.0), WRONG_CLICK),
    (gui.gui_text_reward, {"input_text": ["yes"]}, (0.0, 1.0), WRONG_CLICK),
    (classes.class_reward, {"solution": ["Maine_Coon"]}, (0.0, 1.0), "Bengal"),
    (classes.class_containment_reward, {"solution": ["Maine_Coon"]}, (0.0, 1.0), "Bengal"),
    (choices.choice_reward, {"solution": ["B"]}, (0.0, 1.0), "C"),
    (choices.yes_no_reward, {"solution": ["yes"]}, (0.0, 1.0), "no"),
    (preference.preference_reward, {"solution": ["1"]}, (0.0, 1.0), "2"),
]
AGREEING = [
    (agreement.majority_text_reward, GROUP, (0.0, 1.0)),
    (agreement.majority_box_reward, GROUP, (0.0, 1.0)),
    (agreement.majority_point_reward, GROUP, (0.0, 1.0)),
    (agreement.empo_text_reward, GROUP, (0.0, 1.0)),
    (agreement.empo_box_reward, GROUP, (0.0, 1.0)),
    (agreement.empo_point_reward, GROUP, (0.0, 1.0)),
]
SHAPING = [
    (formats.format_reward, {}, (0.0, 1.0)),
    (formats.box_format_reward, {}, (0.0, 1.0)),
    (formats.boxed_format_reward, {}, (0.0, 1.0)),
    (shaping.length_reward, {"completion_ids": [[0] * 9]}, (0.0, 1.0)),
    (shaping.repetition_reward, {}, (-1.0, 0.0)),
    (shaping.SoftOverlong(max_length=10, cache=5), {"completion_ids": [[0] * 9]}, (-1.0, 0.0)),
    (agreement.random_reward, {}, (0.0, 1.0)),
]
ALL = [entry[:3] for entry in JUDGED] + AGREEING + SHAPING
PARSERS = [
    find_action,
    find_answer,
    find_box,
    find_boxed,
    find_choice,
    find_final_answer,
    find_point,
    find_verdict,
    find_yes_no,
    read_number,
]

N = 100_000
LIMIT = 0.05
"""Seconds of processor time, the best of five, since other processes share the machine."""
INNER = [
    "",
    "[" * N,
    "{" * N,
    "(" * N,
    "[" * (N // 2) + "]" * (N // 2),
    '{"a":' * (N // 10) + "1" + "}" * (N // 10),
    "{'a':" * (N // 5),
    "{'action': '" + "\\" * N,
    "{'action': '" + "a" * N,
    "{'action': 'a', " + "'b': 1, " * (N // 8),
    "{" + "'action': 'a', " * (N // 15) + "}",
    "{'a':'{\"b\":\"" * (N // 11),
    "{" + "'" * N,
    "{" + " " * N + "}",
    "[{" + '"' + "\\u12" * (N // 4),
    "[1, 2, 3, 4], " * (N // 14),
    "[1, 2], " * (N // 8),
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}' + ', {"bbox_2d": [1, 2, 3, 4], "label": "a"}' * (N // 42) + "]",
    "[" + "1, " * (N // 3) + "1]",
    "[" + "9" * N + "]",
    "[NaN, NaN, NaN, NaN]",
    "[Infinity, -Infinity, 1e999, -1e999]",
    "[1e308, 1e308, 1e308, 1e308]",
    "[999999999, 999999999, 999999999, 999999999]",
    "[٣, ٣, ٣, ٣] ² ½ Ⅷ １",
    "\\boxed{" * (N // 7),
    "\\boxed{" + "\\{" * (N // 2),
    "\\boxed{" + "{" * (N // 2) + "}" * (N // 2),
    "A. " * (N // 3),
    "(A) " * (N // 4),
    "A" * N,
    "yes no " * (N // 7),
    "1 " * (N // 2),
    "((((" + "1" * N,
    "answer" + " " * N + "x",
    " " * N,
    "\u2003" * N,
    "a " * (N // 2),
    "_" * N,
    "\x00" * N,
    "\ud800" * N,
    "İ" * N,
    "e\u0301" * (N // 2),
    "<think>" * (N // 7),
    "<answer>" * (N // 8),
    "</think><answer>" * (N // 16),
]


def wrap(inner):
    return [
        inner,
        f"<think>a</think><answer>{inner}</answer>",
        f"<answer>{inner}",
        f"<think>a</think>\\boxed{{{inner}}}",
    ]


def check_range(value, low, high):
    assert value is None or (low <= value <= high and math.isfinite(value))


@pytest.mark.parametrize(("reward", "columns", "limits"), ALL, ids=lambda value: getattr(value, "__name__", ""))
def test_a_hostile_completion_of_100_kb_is_in_range_within_50_ms(reward, columns, limits):
    for inner in INNER:
        for text in wrap(inner)[1::2]:
            assert quickest(partial(reward, completions=[text], **columns), limit=LIMIT) < LIMIT, inner[:40]
            (value,) = reward(completions=[text], **columns)
            check_range(value, *limits)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
def test_a_parser_reads_a_hostile_string_of_100_kb_within_50_ms(parser):
    for inner in INNER:
        for text in wrap(inner):
            assert quickest(partial(parser, text), limit=LIMIT) < LIMIT, inner[:40]


@pytest.mark.parametrize("piece", ["[", "{'a':'{\"b\":\"", "\\boxed{", "'b': 1, ", "A. ", "<answer>", "<think>", "a "])
def test_four_times_the_text_takes_no_more_than_linear_time(piece):
    def seconds(copies):
        texts = ["{" + piece * copies, f"<think></think><answer>{{{piece * copies}</answer>"]
        best = []
        for _ in range(5):
            start = time.process_time()
            for parser in PARSERS:
                for text in texts:
                    parser(text)
            best.append(time.process_time() - start)
        return min(best)

    copies = N // 4 // len(piece)
    # linear is a factor of 4, quadratic one of 16
    assert seconds(4 * copies) < 10 * seconds(copies) + 0.01


TOKENS = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        "{",
        "[",
        "]",
        "(",
        ")",
        ",",
        ":",
        ".",
        "'",
        '"',
    ),
    *(
        "\\",
        " ",
        "\n",
        "1",
        "2",
        "-3.5",
        "9999999999",
        "NaN",
        "1e9",
        "٣",
        "²",
        "\u2003",
        "\x00",
        "İ",
        "A",
        "B",
        "yes",
        "no",
    ),
    *("action", "click", "coordinate", "input_text", "bbox_2d", "label", "<think>a</think><answer>"),
    *("{'action': 'click', 'coordinate': [", "[12, 12, 18, 18]"),
]
pieces = st.sampled_from(TOKENS)
texts = st.one_of(
    st.text(max_size=300),
    st.lists(pieces, max_size=60).map("".join),
    st.lists(pieces, max_size=30).map(lambda parts: f"<think></think><answer>{''.join(parts)}</answer>"),
    st.tuples(pieces, st.integers(1, N // 40)).map(lambda pair: (pair[0] * pair[1])[:N]),
)


@settings(deadline=None, max_examples=200)
@given(texts)
def test_no_text_raises_or_leaves_the_range_in_any_reward(text):
    for reward, columns, limits in ALL:
        for completion in (text, [{"role": "assistant", "content": text}]):
            (value,) = reward(completions=[completion], **columns)
            check_range(value, *limits)


@settings(deadline=None, max_examples=100)
@given(texts)
def test_no_gold_raises_and_none_is_the_answer_to_what_cannot_be_judged(gold):
    for reward, columns, limits in (entry[:3] for entry in JUDGED):
        name = next(name for name in ("solution", "input_text", "action") if name in columns)
        (value,) = reward(completions=["<answer>[1, 2, 3, 4]</answer>"], **{**columns, name: [gold]})
        check_range(value, *limits)


@settings(deadline=None, max_examples=200)
@given(texts)
def test_a_malformed_completion_never_beats_an_honest_wrong_answer(text):
    for reward, columns, _, wrong in JUDGED:
        (honest,) = reward(completions=[f"<answer>{wrong}</answer>"], **columns)
        shares = {}
        (value,) = reward(completions=[text], log_metric=shares.__setitem__, **columns)
        if shares[f"{reward.__name__}/no_answer"] or shares[f"{reward.__name__}/malformed"]:
            assert value <= honest


@settings(deadline=None, max_examples=100)
@given(texts, st.integers(2, 5))
def test_a_group_that_writes_nothing_readable_earns_nothing_by_agreeing(text, size):
    for reward, _, _ in AGREEING:
        shares = {}
        columns = {"group": [0] * size, "group_size": [size] * size, "image_size": [(9, 9)] * size}
        values = reward(completions=[text] * size, log_metric=shares.__setitem__, **columns)
        assert set(values) == ({1.0} if shares[f"{reward.__name__}/parsed"] else {0.0})


def earned(reward, answer, **columns):
    return reward(
        [f"<think>a</think><answer>{answer}</answer>"], **{name: [value] for name, value in columns.items()}
    )[0]


def test_exploit_a_box_of_nan_earns_nothing():
    for answer in ("[NaN, NaN, NaN, NaN]", '```json\n[{"bbox_2d": [NaN, NaN, NaN, NaN], "label": "cat"}]\n```'):
        assert earned(grounding.iou_reward, answer, solution="[1, 1, 9, 9]", image_size=(20, 20)) == 0.0
        assert earned(grounding.giou_reward, answer, solution="[1, 1, 9, 9]", image_size=(20, 20)) == -1.0
        assert earned(pointing.box_centre_reward, answer, solution="[1, 1, 9, 9]", image_size=(20, 20)) == 0.0
        assert formats.box_format_reward([f"<think>a</think><answer>{answer}</answer>"]) == [0.0]
    assert earned(pointing.point_in_box_reward, "[NaN, NaN]", solution="[1, 1, 9, 9]", image_size=(20, 20)) == 0.0


def test_exploit_infinite_and_huge_numbers_earn_nothing():
    for answer in (
        "[-Infinity, -Infinity, Infinity, Infinity]",
        "[-1e999, -1e999, 1e999, 1e999]",
        f"[0, 0, {'9' * 99}, 9]",
    ):
        assert earned(grounding.iou_reward, answer, solution="[1, 1, 9, 9]", image_size=(20, 20)) == 0.0
        assert earned(grounding.giou_reward, answer, solution="[1, 1, 9, 9]", image_size=(20, 20)) == -1.0


def test_exploit_listing_boxes_or_points_until_one_fits_earns_nothing():
    boxes = ", ".join(f"[{x}, {x}, {x + 4}, {x + 4}]" for x in range(40, 0, -4))
    assert earned(grounding.iou_reward, boxes, solution="[4, 4, 8, 8]", image_size=(60, 60)) == 0.0
    assert earned(pointing.box_centre_reward, boxes, solution="[4, 4, 8, 8]", image_size=(60, 60)) == 0.0
    points = ", ".join(f"({x}, {x})" for x in range(40, 0, -2))
    assert earned(pointing.point_in_box_reward, points, solution="[4, 4, 8, 8]", image_size=(60, 60)) == 0.0


def test_exploit_an_empty_or_one_letter_class_name_earns_nothing():
    for reward in (classes.class_reward, classes.class_containment_reward):
        for answer in ("", " ", "_", "e", "Sedan"):
            assert earned(reward, answer, solution="2012 Acura TL Sedan") == 0.0


def test_exploit_saying_nothing_when_the_gold_cannot_be_read_earns_nothing():
    for reward, columns, _, _ in JUDGED:
        if "solution" in columns:
            for text in ("", "<think>a</think><answer></answer>", "None", "<answer>None</answer>"):
                for gold in ("", None):
                    assert reward(completions=[text], **{**columns, "solution": [gold]})[0] in (None, 0.0)
    texts = ["", "<answer></answer>", "<answer>None</answer>"]
    assert choices.yes_no_reward(texts, ["none"] * 3) == choices.choice_reward(texts, ["none"] * 3) == [None] * 3


def test_exploit_answering_yes_by_a_substring_earns_nothing():
    assert earned(choices.yes_no_reward, "nothing is known", solution="no") == 0.0
    assert earned(choices.yes_no_reward, "eyes", solution="yes") == 0.0
    assert earned(choices.yes_no_reward, "yes no", solution="yes") == 0.0
    assert earned(choices.yes_no_reward, "yes no", solution="no") == 0.0


def test_exploit_naming_every_choice_or_both_verdicts_earns_nothing():
    for hedge in ("A, B, C or D", "A. B. C. D.", "(A) (B) (C) (D)", "ABCD", "A: x B: y C: z D: w", "[A, B, C, D]"):
        for gold in "ABCD":
            assert earned(choices.choice_reward, hedge, solution=gold) == 0.0
    for hedge in ("1 and 2", "12", "1/2", "[1, 2]", "1.2", "1, 2, 3 or 4"):
        for gold in (1, 2):
            assert earned(preference.preference_reward, hedge, solution=gold) == 0.0


def test_exploit_an_answer_quoted_in_the_thinking_earns_nothing():
    golds = {"solution": ["B"]}
    assert choices.choice_reward(["<think><answer>B</answer> \\boxed{B}</think>"], **golds) == [0.0]
    box = "<think><answer>[10, 10, 20, 20]</answer></think>"
    assert grounding.iou_reward([box], **PLACE) == [0.0]
    assert agreement.majority_text_reward([box], [0], [1]) == [0.0]


def test_exploit_an_empty_completion_earns_no_length_reward_and_a_long_one_the_least():
    ids = [[], [0], [0] * 2048, [0] * 1024, [0] * 9]
    empty, blank, long, limit, short = shaping.length_reward(["", " ", "a", "a", "a"], completion_ids=ids)
    assert empty == blank == 0.0
    assert long == limit == 0.5 < short


def test_exploit_a_json_list_of_numbers_or_null_does_not_stop_the_repetition_reward():
    for entries in ("[1, 2]", "[null]", '[{"bbox_2d": null, "label": 3}]', '[{"label": {}}]', "[[[]]]", "[true]"):
        assert earned(shaping.repetition_reward, entries) == 0.0


def test_exploit_a_box_without_a_label_or_with_a_label_of_another_type_does_not_stop_any_reward():
    for answer in ('[{"bbox_2d": [10, 10, 20, 20]}]', '[{"bbox_2d": [10, 10, 20, 20], "label": null}]'):
        for reward, columns, limits in ALL:
            (value,) = reward(completions=[f"<think>a</think><answer>{answer}</answer>"], **columns)
            check_range(value, *limits)
        assert grounding.iou_reward([f"<answer>{answer}</answer>"], **PLACE) == [1.0]


def test_exploit_a_right_place_under_a_wrong_action_earns_nothing():
    answer = "[{'action': 'scroll', 'coordinate': [15, 15]}]"
    assert earned(gui.gui_coordinate_reward, answer, solution="[10, 10, 20, 20]", image_size=(100, 50)) == 0.0
    twice = "[{'action': 'scroll'}, {'action': 'click', 'coordinate': [15, 15]}]"
    assert earned(gui.gui_coordinate_reward, twice, solution="[10, 10, 20, 20]", image_size=(100, 50)) == 0.0


def test_exploit_a_second_copy_of_a_tag_or_of_the_box_earns_no_format():
    assert formats.format_reward(["<think>a</think><answer>b</answer><answer>c</answer>"]) == [0.0]
    assert formats.boxed_format_reward(["<think>a</think>\\boxed{1}\\boxed{2}"]) == [0.0]


def test_a_right_overlap_of_one_pixel_or_of_fractions_counts():
    assert earned(grounding.iou_reward, "[1, 1, 2, 2]", solution="[1, 1, 2, 2]", image_size=(9, 9)) == 1.0
    small = {"solution": "[0.1, 0.1, 0.5, 0.5]", "coordinate_space": "relative_1", "solution_space": "relative_1"}
    assert earned(grounding.iou_reward, "[ 0.1, 0.1, 0.5, 0.5]", image_size=(9, 9), **small) == 1.0
