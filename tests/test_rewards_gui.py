"""GUI rewards: the action's name, its place and its text, the parser of actions, and the two pointing rewards."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_entropy.rewards.gui import gui_action_name_reward, gui_coordinate_reward, gui_text_reward
from vlm_entropy.rewards.parsing import Action, find_action
from vlm_entropy.rewards.pointing import box_centre_reward, point_in_box_reward

GOLD = "[10, 10, 20, 30]"


def answered(answer):
    return f"<think>look</think><answer>{answer}</answer>"


def click(x, y):
    return answered(f"[{{'action': 'click', 'coordinate': [{x}, {y}]}}]")


TYPE = answered("[{'action': 'input_text', 'input_text': 'New York'}]")
SCROLL = answered("[{'action': 'scroll'}]")


def coordinate(text, solution=GOLD, image_size=(100, 50), **columns):
    columns = {name: [value] for name, value in columns.items()}
    return gui_coordinate_reward([text], [solution], [image_size], **columns)[0]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("[{'action': 'click', 'coordinate': [1, 2]}]", Action("click", (1, 2), None)),
        ('[{"action": "click", "coordinate": [1.5, -2]}]', Action("click", (1.5, -2), None)),
        ('```json\n[\n {"coordinate": (3, 4), "action": "click",}\n]\n```', Action("click", (3, 4), None)),
        ("{'action':'input_text','input_text':'it\\'s \"5\"'}", Action("input_text", None, 'it\'s "5"')),
        ('{"action": "input_text", "input_text": "caf\\u00e9\\n"}', Action("input_text", None, "café\n")),
        ("[{'action': 'scroll', 'why': ['a']}]", None),
        ("[{'action': 'scroll', 'coordinate': None, 'input_text': null}]", Action("scroll", None, None)),
        ("{'action': 'click', 'coordinate': [1, 2, 3]}", Action("click", None, None)),
        ("{'action': 'click', 'coordinate': [1, 2)}", Action("click", None, None)),
        ("{'action': 'input_text', 'input_text': 'two\nlines'}", Action("input_text", None, "two\nlines")),
        ("{'action': 'a'}, {'action': 'b'}", Action("a", None, None)),
        ("{'action': 'a', 'action': 'b'}", None),
        ("{'action': {'action': 'b'}}", None),
        ("{'action': click}", None),
        ("{'action': 5}", None),
        ("{'action': 'x\\q'}", None),
        ("{'coordinate': [1, 2]}", None),
        ("{'action': 'click'", None),
        ("{'action': 'click' 'coordinate': [1, 2]}", None),
        ("{}", None),
        ("{,}", None),
        ("click [1, 2]", None),
    ],
)
def test_an_action_is_read_from_the_first_flat_object_in_either_kind_of_quotes(text, action):
    assert find_action(text) == action


@given(st.text(max_size=30), st.integers(0, 9999), st.integers(0, 9999))
def test_an_action_written_as_json_or_as_python_is_read_back(text, x, y):
    fields = {"action": "input_text", "coordinate": [x, y], "input_text": text}
    assert find_action(json.dumps([fields])) == Action("input_text", (x, y), text)
    assert find_action(json.dumps(fields, ensure_ascii=False)) == Action("input_text", (x, y), text)
    if text.isprintable():
        assert find_action(repr([fields])) == Action("input_text", (x, y), text)


def test_the_name_of_the_action_must_be_the_gold_one_and_is_click_where_none_is_given():
    assert gui_action_name_reward([click(0, 0), SCROLL]) == [1.0, 0.0]
    assert gui_action_name_reward([SCROLL, SCROLL, SCROLL], action=["scroll", None, "Scroll"]) == [1.0, 0.0, 0.0]
    assert gui_action_name_reward([answered("{'action': ' scroll '}")], action=["scroll\n"]) == [1.0]


def test_a_blank_gold_action_cannot_be_judged():
    assert gui_action_name_reward([SCROLL, SCROLL], action=[" ", 3]) == [None, None]
    assert coordinate(SCROLL, action="") is None
    assert gui_text_reward([TYPE], ["New York"], [""]) == [None]


@pytest.mark.parametrize(("x", "y", "score"), [(10, 10, 1.0), (20, 30, 1.0), (9.9, 10, 0.0), (20, 30.1, 0.0)])
def test_a_click_must_lie_in_the_gold_box_borders_included(x, y, score):
    assert coordinate(click(x, y)) == score
    assert point_in_box_reward([click(x, y)], [GOLD], [(100, 50)]) == [score]


def test_a_click_is_converted_from_the_space_of_its_row():
    # on 100 x 50 pixels, thousandths (70, 200) are (7, 10)
    assert coordinate(click(70, 200), "[0, 0, 7, 10]", coordinate_space="relative_1000") == 1.0
    assert coordinate(click(71, 200), "[0, 0, 7, 10]", coordinate_space="relative_1000") == 0.0
    # the model sees 200 x 25: (40, 5) is (20, 10)
    resized = {"coordinate_space": "absolute_resized", "input_size": (200, 25)}
    assert coordinate(click(40, 5), **resized) == 1.0
    assert coordinate(click(40, 16), **resized) == 0.0
    # gold in thousandths: [0, 0, 7, 10] in pixels
    assert coordinate(click(7, 10), "[0, 0, 70, 200]", solution_space="relative_1000") == 1.0


def test_float_rounding_in_a_conversion_does_not_push_a_click_over_a_border():
    # 36 / 28 * 21 = 27.000000000000004 and 16 / 196 * 49 = 3.9999999999999996 in floats, 27 and 4 by right
    right = {"image_size": (36, 36), "input_size": (28, 28), "coordinate_space": "absolute_resized"}
    assert coordinate(click(21, 21), "[0, 0, 27, 27]", **right) == 1.0
    left = {"image_size": (16, 16), "input_size": (196, 196), "coordinate_space": "absolute_resized"}
    assert coordinate(click(49, 49), "[4, 4, 9, 9]", **left) == 1.0
    # the gold border 0.07 * 100 = 7.000000000000001
    assert coordinate(click(7, 7), "[0.07, 0.1, 0.5, 0.5]", solution_space="relative_1") == 1.0


def test_another_action_needs_no_place_and_a_click_with_the_right_place_does_not_pass_for_it():
    assert coordinate(SCROLL, "", action="scroll") == 1.0
    assert coordinate(SCROLL, "", action="scroll", image_size=None) == 1.0
    assert coordinate(click(15, 15), GOLD, action="scroll") == 0.0
    assert coordinate(SCROLL) == 0.0


def test_a_click_without_a_gold_box_or_an_image_size_cannot_be_judged():
    assert coordinate(click(15, 15), "") is None
    assert coordinate(click(15, 15), "[9, 9, 1, 1]") is None
    assert coordinate(click(15, 15), image_size=None) is None
    assert coordinate(SCROLL, "") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[{'action': 'click', 'coordinate': [15, 15]}]",
        answered("[15, 15]"),
        answered("{'action': 'click'} [15, 15]"),
        answered("{'action': 'click', 'coordinate': [nan, 15]}"),
        answered("{'action': 'click', 'coordinate': [10, 10, 20, 30]}"),
        answered("[{'action': 'scroll'}, {'action': 'click', 'coordinate': [15, 15]}]"),
        "<think><answer>{'action': 'click', 'coordinate': [15, 15]}</answer></think>",
    ],
)
def test_a_click_that_is_not_the_first_action_of_the_answer_earns_nothing(text):
    assert coordinate(text) == 0.0


def test_python_code_in_an_answer_is_text_and_is_not_run(tmp_path):
    path = tmp_path / "made"
    code = f"[{{'action': 'click', 'coordinate': [open({str(path)!r}, 'w'), 1]}}]"
    assert coordinate(answered(code)) == 0.0
    assert not path.exists()


def test_a_typed_text_must_be_exact_apart_from_blanks_at_its_ends():
    assert gui_text_reward(
        [answered("{'action': 'input_text', 'input_text': ' a b\\n'}")], ["a b"], ["input_text"]
    ) == [1.0]
    golds = ["New York", " New York\n", "new york", "York New", "New", None, " "]
    assert gui_text_reward([TYPE] * 7, golds, ["input_text"] * 7) == [1.0, 1.0, 0.0, 0.0, 0.0, None, None]
    assert gui_text_reward([TYPE], None, ["input_text"]) == [None]


def test_the_right_text_under_another_action_or_no_text_earns_nothing():
    wrong = answered("{'action': 'click', 'input_text': 'New York'}")
    none = answered("{'action': 'input_text', 'input_text': None}")
    assert gui_text_reward([wrong, none], ["New York"] * 2, ["input_text"] * 2) == [0.0, 0.0]


def test_kinds_are_logged_over_judged_rows_under_the_name_of_each_reward():
    texts = [click(15, 15), click(99, 60), answered("{'action': 'click'}"), answered("x"), "x", click(1, 1)]
    logged = {}
    scores = gui_coordinate_reward(texts, [GOLD] * 5 + [""], [(100, 50)] * 6, log_metric=logged.__setitem__)
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0, None]
    kinds = {"parsed": 0.2, "no_answer": 0.2, "malformed": 0.4, "out_of_image": 0.2}
    assert logged == {f"gui_coordinate_reward/{kind}": share for kind, share in kinds.items()}
    for reward in (gui_action_name_reward, gui_text_reward):
        logged = {}
        reward([TYPE], input_text=["New York"], action=["input_text"], log_metric=logged.__setitem__)
        assert logged[f"{reward.__name__}/parsed"] == 1.0


def test_a_box_hits_by_its_centre_whatever_its_size():
    # centres (15, 20), (15, 20), (20, 30) on the corner, (20.5, 20)
    boxes = ["[14, 19, 16, 21]", "[0, 0, 30, 40]", "[10, 20, 30, 40]", "[11, 10, 30, 30]"]
    answers = [answered(box) for box in boxes]
    assert box_centre_reward(answers, [GOLD] * 4, [(100, 50)] * 4) == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "answer", ["[15, 15]", "[16, 21, 14, 19]", "[15, 15, 15, 15]", "(10, 10, 20, 30)", "here", ""]
)
def test_an_answer_without_a_box_that_encloses_something_has_no_centre(answer):
    assert box_centre_reward([answered(answer)], [GOLD], [(100, 50)]) == [0.0]


def test_a_box_is_no_point_and_only_the_first_point_counts():
    answers = [answered("[10, 10, 20, 30]"), answered("(1, 1) (15, 15)"), "(15, 15)", answered("it is at (15, 15)")]
    assert point_in_box_reward(answers, [GOLD] * 4, [(100, 50)] * 4) == [0.0, 0.0, 0.0, 1.0]


def test_pointing_logs_its_kinds_and_leaves_out_rows_without_a_gold_box():
    logged = {}
    texts = [answered("(15, 15)"), answered("(-1, 15)"), answered("x"), "x"]
    assert point_in_box_reward([*texts, texts[0]], [GOLD] * 4 + [None], [(100, 50)] * 5, log_metric=logged.__setitem__)
    assert logged == {f"point_in_box_reward/{k}": 0.25 for k in ("parsed", "no_answer", "malformed", "out_of_image")}
    assert point_in_box_reward([texts[0]], [GOLD], [None]) == [None]
    assert box_centre_reward([texts[0]], ["none"], [(100, 50)]) == [None]
