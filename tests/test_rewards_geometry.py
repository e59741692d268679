"""Boxes: IoU, GIoU, containment and coordinate spaces, against hand-worked numbers and a pixel count."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_entropy.rewards.geometry import SPACES, from_original, giou, iou, point_in_box, to_original

numbers = st.floats(-1e4, 1e4)
boxes = st.tuples(numbers, numbers, numbers, numbers)
wild = st.tuples(*[st.floats()] * 4)
grid_boxes = st.tuples(*[st.integers(0, 8)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)


def cells(box):
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def test_iou_of_two_overlapping_squares():
    # areas 4 and 4, overlap the unit square: 1 / (4 + 4 - 1)
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == 1 / 7


def test_iou_of_a_box_in_another_is_the_ratio_of_the_areas():
    assert iou((0, 0, 4, 4), (1, 1, 3, 2)) == 2 / 16


def test_an_overlap_one_pixel_wide_counts():
    # VLM-R1's integer intersection scores this 0; areas 2 and 2, overlap 1: 1 / 3
    assert iou((0, 0, 2, 1), (1, 0, 3, 1)) == 1 / 3
    assert iou((5, 5, 6, 6), (5, 5, 6, 6)) == 1.0


def test_boxes_of_fractions_of_the_image_are_scored_too():
    assert iou((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 1.0)) == 0.5


def test_touching_boxes_do_not_overlap():
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0


@pytest.mark.parametrize(
    "bad", [(2, 0, 0, 2), (0, 2, 2, 0), (1, 1, 1, 2), (0, 0, math.inf, 1), (math.nan, 0, 1, 1), (math.nan,) * 4]
)
def test_reversed_empty_and_non_finite_boxes_score_lowest_even_against_themselves(bad):
    assert iou(bad, bad) == iou(bad, (0, 0, 2, 2)) == iou((0, 0, 2, 2), bad) == 0.0
    assert giou(bad, bad) == giou(bad, (0, 0, 2, 2)) == -1.0


def test_areas_that_overflow_score_lowest_and_do_not_give_nan():
    huge = (0.0, 0.0, 1e200, 1e200)
    assert iou(huge, huge) == 0.0
    assert giou(huge, huge) == -1.0


@given(grid_boxes, grid_boxes)
def test_iou_equals_the_count_of_shared_cells_on_a_grid(a, b):
    # independent source: set arithmetic on unit cells
    assert iou(a, b) == len(cells(a) & cells(b)) / len(cells(a) | cells(b))


@given(wild, wild)
def test_scores_stay_in_their_range_and_are_symmetric_for_any_floats(a, b):
    assert 0.0 <= iou(a, b) == iou(b, a) <= 1.0
    assert -1.0 <= giou(a, b) == giou(b, a) <= 1.0


def test_giou_of_two_unit_squares_one_apart():
    # no overlap; hull 3 x 1, union 2: 0 - (3 - 2) / 3
    assert giou((0, 0, 1, 1), (2, 0, 3, 1)) == pytest.approx(-1 / 3, rel=0, abs=1e-15)


def test_giou_of_two_overlapping_squares():
    # IoU 1/7, hull 9, union 7: 1/7 - 2/9 = -5/63
    assert giou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(-5 / 63, rel=0, abs=1e-15)


def test_giou_of_equal_boxes_is_one():
    assert giou((0, 0, 2, 5), (0, 0, 2, 5)) == 1.0


def test_a_point_on_the_border_is_in_the_box():
    assert point_in_box((0, 5), (0, 0, 10, 5))
    assert not point_in_box((-0.1, 5), (0, 0, 10, 5))
    assert not point_in_box((5, 5.1), (0, 0, 10, 5))
    assert not point_in_box((math.nan, 1), (0, 0, 10, 5))


@pytest.mark.parametrize(
    ("space", "box"),
    [
        ("absolute", (64, 48, 320, 240)),
        ("absolute_resized", (32, 12, 160, 60)),  # 640x480 seen as 320x120: half in x, a quarter in y
        ("relative_1000", (100, 100, 500, 500)),
        ("relative_1", (0.1, 0.1, 0.5, 0.5)),
    ],
)
def test_each_space_maps_to_the_same_box_of_the_original_image(space, box):
    original = to_original(box, space, image_size=(640, 480), input_size=(320, 120))
    assert original == pytest.approx((64, 48, 320, 240), rel=0, abs=1e-12)
    assert from_original(original, space, image_size=(640, 480), input_size=(320, 120)) == pytest.approx(
        box, abs=1e-12
    )


@given(boxes, st.sampled_from(SPACES), st.tuples(*[st.integers(1, 5000)] * 4))
def test_from_original_undoes_to_original(box, space, sides):
    sizes = {"image_size": sides[:2], "input_size": sides[2:]}
    assert to_original(from_original(box, space, **sizes), space, **sizes) == pytest.approx(box, rel=1e-12, abs=1e-9)


def test_an_unknown_space_is_named():
    with pytest.raises(ValueError, match="Unknown coordinate space 'pixels'; allowed are absolute, absolute_resized"):
        to_original((0, 0, 1, 1), "pixels", image_size=(2, 2))


@pytest.mark.parametrize(
    ("space", "sizes", "missing"),
    [
        ("absolute_resized", {"image_size": (2, 2)}, "input_size"),
        ("absolute_resized", {"image_size": (2, 2), "input_size": (0, 2)}, "input_size"),
        ("relative_1000", {"image_size": None}, "image_size"),
    ],
)
def test_a_missing_or_empty_size_is_named(space, sizes, missing):
    with pytest.raises(ValueError, match=f"{space}.*needs {missing}"):
        to_original((0, 0, 1, 1), space, **sizes)
