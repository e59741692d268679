"""Which rows entropy-guided curation keeps, and in which order low-to-high training sees them."""

import math
import random

import numpy as np
import pytest

from vlm_entropy.data.curriculum import curriculum, keep_indices

#            row 0    1    2    3    4
ENTROPIES = [0.30, 0.10, 0.20, 0.10, 0.40]
UNKNOWN = [math.nan, 0.2, None, 0.1, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [
        (1.0, [1, 3, 2, 0, 4]),  # rows 1 and 3 are equal and keep their order
        (0.6, [1, 3, 2]),  # 0.6 · 5 = 3
        (0.59, [1, 3]),  # floor(2.95)
        (0.01, [1]),  # floor(0.05) = 0, and one row at least
    ],
)
def test_a_fraction_keeps_the_rows_of_lowest_entropy(fraction, kept):
    assert keep_indices(ENTROPIES, keep_fraction=fraction) == kept


def test_a_fraction_is_the_decimal_number_that_was_written():
    # In binary 0.29 · 100 is 28.999999999999996.
    assert len(keep_indices([0.0] * 100, keep_fraction=0.29)) == 29


def test_a_limit_keeps_the_rows_up_to_it_and_may_keep_none():
    assert keep_indices(ENTROPIES, max_entropy=0.2) == [1, 3, 2]
    assert keep_indices(ENTROPIES, max_entropy=0.05) == []


def test_rows_without_a_finite_entropy_are_dropped_first():
    assert keep_indices(UNKNOWN, keep_fraction=1.0) == [3, 1, 0, 2, 4, 5]
    assert keep_indices(UNKNOWN, keep_fraction=0.5) == [3, 1, 0]
    assert keep_indices(UNKNOWN, keep_fraction=0.34) == [3, 1]
    assert keep_indices(UNKNOWN, max_entropy=1e9) == [3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"one of them \(got None and None\)"),
        ({"keep_fraction": 0.5, "max_entropy": 1.0}, r"one of them \(got 0.5 and 1.0\)"),
        ({"keep_fraction": 0.0}, r"keep_fraction must lie in \(0, 1\], got 0.0"),
        ({"keep_fraction": 1.1}, "got 1.1"),
        ({"keep_fraction": math.nan}, "got nan"),
        ({"max_entropy": math.inf}, "max_entropy must be a finite number of nats, got inf"),
    ],
)
def test_curation_needs_one_option_in_its_range(options, message):
    with pytest.raises(ValueError, match=message):
        keep_indices(ENTROPIES, **options)


def test_no_rows_keep_none():
    assert keep_indices([], keep_fraction=0.5) == []


def test_stages_are_contiguous_blocks_of_the_ascending_order():
    assert curriculum(ENTROPIES) == [[1, 3, 2, 0, 4]]
    # Five rows in two stages: three and two.
    assert curriculum(ENTROPIES, stages=2) == [[1, 3, 2], [0, 4]]
    assert curriculum(ENTROPIES, stages=5) == [[1], [3], [2], [0], [4]]
    assert curriculum(UNKNOWN, stages=3) == [[3, 1], [0, 2], [4, 5]]


def test_cumulative_stages_repeat_the_rows_before_them():
    assert curriculum(ENTROPIES, stages=3, cumulative=True) == [[1, 3], [1, 3, 2, 0], [1, 3, 2, 0, 4]]


@pytest.mark.parametrize("rows", [7, 8, 9, 23])
@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_stages_are_those_of_numpy_on_a_stable_argsort(rows, stages):
    rng = random.Random(rows)
    entropies = [rng.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(rows)]
    # numpy 2's own sort and split.
    expected = np.array_split(np.argsort(np.array(entropies), kind="stable"), stages)
    assert curriculum(entropies, stages=stages) == [block.tolist() for block in expected]


def test_a_permutation_of_distinct_entropies_permutes_the_rows():
    entropies = [0.5, 0.1, 0.4, 0.2, 0.3]
    places = [3, 0, 4, 1, 2]
    permuted = curriculum([entropies[place] for place in places], stages=2)
    assert [[places[row] for row in stage] for stage in permuted] == curriculum(entropies, stages=2)


@pytest.mark.parametrize("stages", [0, 6])
def test_a_stage_needs_a_row(stages):
    with pytest.raises(ValueError, match=rf"stages must be 1 to the number of rows \(5\), got {stages}"):
        curriculum(ENTROPIES, stages=stages)
