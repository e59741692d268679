"""The IoU and GIoU rewards: hand-worked scores, what cannot be judged, and what is logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_entropy.rewards.grounding import giou_reward, iou_reward
from vlm_entropy.rewards.judging import KINDS

RIGHT = "<think>left</think><answer>[0, 0, 10, 10]</answer>"
GOLD = "[0, 0, 10, 10]"


def score(text, solution=GOLD, image_size=(100, 50), **columns):
    columns = {name: [value] for name, value in columns.items()}
    return iou_reward([text], [solution], [image_size], **columns)[0]


def test_the_right_box_scores_one_and_half_of_it_a_half():
    assert score(RIGHT) == 1.0
    assert score("<answer>[0, 0, 5, 10]</answer>") == 0.5


def test_the_box_is_converted_from_the_space_of_its_row():
    # gold in original pixels of a 100x50 image; x 0..100, y 0..200 thousandths are 10 x 10 pixels
    thousandths = "<answer>[0, 0, 100, 200]</answer>"
    assert score(thousandths, coordinate_space="relative_1000") == pytest.approx(1.0, abs=1e-12)
    # read as pixels the same numbers are a 100 x 200 box: 100 / 20000
    assert score(thousandths) == pytest.approx(0.005, abs=1e-12)
    # the model sees 200x25: twice as wide, half as high
    resized = "<answer>[0, 0, 20, 5]</answer>"
    assert score(resized, coordinate_space="absolute_resized", input_size=(200, 25)) == 1.0


def test_the_gold_box_is_converted_from_its_own_space():
    assert score(RIGHT, solution="[0, 0, 100, 200]", solution_space="relative_1000") == pytest.approx(1.0, abs=1e-12)


def test_rows_of_different_spaces_and_sizes_are_scored_in_order():
    scores = iou_reward(
        completions=[[{"role": "assistant", "content": RIGHT}], "<answer>[0, 0, 500, 500]</answer>", "no answer"],
        solution=[GOLD, "[0, 0, 50, 25]", GOLD],
        image_size=[(20, 20), [100, 50], (20, 20)],
        input_size=[(20, 20), (28, 28), None],
        coordinate_space=["absolute_resized", "relative_1000", "absolute_resized"],
        prompts=["a", "b", "c"],
        trainer_state=None,
    )
    assert scores == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[0, 0, 10, 10]",
        "<answer>the cat</answer>",
        "[0, 0, 10, 10]<answer>it</answer>",
        "<answer>[10, 10, 0, 0]</answer>",
        "<answer>[1, 2]</answer>",
    ],
)
def test_no_answer_a_malformed_one_or_a_reversed_box_is_judged_wrong(text):
    assert score(text) == 0.0


@pytest.mark.parametrize("solution", ["the cat", "", None, "[1, 2, 3]", "[5, 5, 5, 9]", "[9, 9, 1, 1]"])
def test_a_gold_that_is_no_box_cannot_be_judged(solution):
    assert score(RIGHT, solution=solution) is None


def test_a_row_without_image_size_cannot_be_judged():
    assert score(RIGHT, image_size=None, coordinate_space="absolute_resized") is None


def test_an_unknown_space_or_a_missing_input_size_raises():
    with pytest.raises(ValueError, match="Unknown coordinate space 'pixels'"):
        score(RIGHT, coordinate_space="pixels")
    with pytest.raises(ValueError, match="needs input_size"):
        score(RIGHT, coordinate_space="absolute_resized")


def test_shares_are_logged_over_judged_rows_and_an_iou_of_one_half_is_not_accurate():
    logged = {}
    half, most = "<answer>[0, 0, 5, 10]</answer>", "<answer>[0, 0, 6, 10]</answer>"
    texts = [RIGHT, half, most, "nothing", "<answer>cat</answer>", RIGHT]
    iou_reward(texts, [GOLD] * 5 + ["no box"], [(20, 20)] * 6, log_metric=logged.__setitem__)
    # five judged rows: 1.0 and 0.6 are above one half
    kinds = {"parsed": 0.6, "no_answer": 0.2, "malformed": 0.2, "out_of_image": 0.0}
    assert logged == {f"iou_reward/{kind}": share for kind, share in kinds.items()} | {"iou_reward/accuracy@0.5": 0.4}


def test_a_box_that_leaves_the_image_is_counted_and_scored_by_its_overlap():
    logged = {}
    # intersection 10 x 20 = 200, union 20 x 20 + 10 x 20 - 200 = 400
    text = "<answer>[-10, 0, 10, 20]</answer>"
    assert iou_reward([text], ["[0, 0, 10, 20]"], [(20, 20)], log_metric=logged.__setitem__) == [0.5]
    assert logged["iou_reward/out_of_image"] == 1.0


@pytest.mark.parametrize("box", ["[-1, 0, 9, 9]", "[0, -1, 9, 9]", "[0, 0, 21, 9]", "[0, 0, 9, 11]", "[21, 0, 9, 9]"])
def test_a_box_leaves_the_image_on_any_side(box):
    logged = {}
    iou_reward([f"<answer>{box}</answer>"], ["[0, 0, 9, 9]"], [(20, 10)], log_metric=logged.__setitem__)
    assert logged["iou_reward/out_of_image"] == 1.0
    iou_reward(["<answer>[0, 0, 20, 10]</answer>"], ["[0, 0, 9, 9]"], [(20, 10)], log_metric=logged.__setitem__)
    assert logged["iou_reward/out_of_image"] == 0.0


def test_nothing_is_logged_when_nothing_could_be_judged():
    logged = {}
    assert iou_reward([RIGHT], ["no box"], [(20, 20)], log_metric=logged.__setitem__) == [None]
    assert logged == {}


def test_the_metric_key_is_the_name_of_the_function():
    assert iou_reward.__name__ == "iou_reward"


@given(st.text(max_size=200), st.text(max_size=50))
def test_any_completion_and_any_gold_give_a_number_in_range_or_none(text, solution):
    assert score(f"<answer>{text}</answer>") in {0.0, 1.0} or 0.0 <= score(f"<answer>{text}</answer>") <= 1.0
    assert score(RIGHT, solution=solution) is None or 0.0 <= score(RIGHT, solution=solution) <= 1.0


def giou(text, solution=GOLD, image_size=(100, 50)):
    return giou_reward([text], [solution], [image_size])[0]


def test_the_giou_reward_by_hand():
    assert giou(RIGHT) == 1.0
    # side by side: no overlap, union 200, hull 200
    assert giou("<answer>[10, 0, 20, 10]</answer>") == 0.0
    # 20 apart: union 200, hull 40 x 10 = 400, 0 - 200 / 400
    assert giou("<answer>[30, 0, 40, 10]</answer>") == -0.5
    # half of it: 50 / 100, and the hull is the union
    assert giou("<answer>[0, 0, 5, 10]</answer>") == 0.5


@pytest.mark.parametrize("text", ["", "[0, 0, 10, 10]", "<answer>cat</answer>", "<answer>[10, 10, 0, 0]</answer>"])
def test_without_a_box_that_encloses_something_the_giou_reward_is_the_lowest(text):
    assert giou(text) == -1.0 < giou("<answer>[90, 40, 99, 49]</answer>")


def test_the_giou_reward_converts_spaces_logs_kinds_and_passes_over_what_cannot_be_judged():
    logged = {}
    texts = ["<answer>[0, 0, 100, 200]</answer>", "x", "<answer>x</answer>", RIGHT]
    scores = giou_reward(
        texts,
        [GOLD] * 3 + ["x"],
        [(100, 50)] * 4,
        coordinate_space=["relative_1000"] * 4,
        log_metric=logged.__setitem__,
    )
    assert scores == [pytest.approx(1.0, abs=1e-12), -1.0, -1.0, None]
    assert logged == {f"giou_reward/{kind}": share for kind, share in zip(KINDS, (1 / 3, 1 / 3, 1 / 3, 0.0))}
    assert giou(RIGHT, image_size=None) is None
