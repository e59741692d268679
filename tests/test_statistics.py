"""Statistics by hand, against loops and scipy, their laws, and how often the intervals hold the truth."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm_entropy.data.curation_statistics import odds_ratio, spearman
from vlm_entropy.eval import statistics
from vlm_entropy.eval.statistics import (
    bootstrap_mean_interval,
    bootstrap_means,
    majority_at_k,
    mcnemar,
    mean_at_k,
    paired_bootstrap,
    pass_at_k,
    seed_spread,
    wilson_interval,
)

EXACT = {"rel": 0, "abs": 1e-12}
FINITE = st.floats(-100, 100)


# --- the paired bootstrap


def test_the_mean_difference_is_second_minus_first():
    # differences 1, 0, 0.5, -0.5: mean 0.25
    result = paired_bootstrap([0, 1, 0.5, 1], [1, 1, 1, 0.5], seed=0)
    assert result.difference == 0.25
    assert -0.5 <= result.low < 0.25 < result.high <= 1


def test_the_resampled_means_of_two_values_are_those_of_the_binomial():
    # of {0, 1} the mean of two draws is 0, 0.5, 1 with probability 1/4, 1/2, 1/4;
    # standard error of a share √(.25 · .75 / 40000) = .0022
    means = bootstrap_means([0.0, 1.0], resamples=40_000, seed=0)
    shares = [float((means == value).mean()) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.009)
    assert sum(shares) == 1


def test_the_p_value_by_hand():
    # Every difference is 1, so all 99 means are: none <= 0. p = 2 (1 + 0) / (99 + 1) = 0.02.
    assert paired_bootstrap([0, 0], [1, 1], resamples=99, seed=0) == (1.0, 1.0, 1.0, 0.02)
    # Differences 1 and -1: both tails have more than half of the means, so 2 · tail / (B + 1) > 1 is cut to 1.
    assert paired_bootstrap([0, 1], [1, 0], resamples=99, seed=0).p_value == 1.0


def test_the_interval_is_that_of_scipy():
    # scipy 1.17, stats.bootstrap(method="percentile") on the differences; both are random, with a standard error of
    # the ends of about √(.025 · .975 / 20000) / (density .058 / sd) = .019 sd; sd of the mean = .3/√200 = .02
    rng = np.random.default_rng(0)
    first, second = rng.random(200), rng.random(200)
    ours = paired_bootstrap(first, second, resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (second - first,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.0025)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=20), st.integers(0, 99))
def test_identical_runs_do_not_differ(values, seed):
    assert paired_bootstrap(values, values, resamples=20, seed=seed) == (0.0, 0.0, 0.0, 1.0)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=20), st.integers(0, 99))
def test_swapping_the_runs_flips_the_sign_and_keeps_the_p_value(pairs, seed):
    first, second = zip(*pairs)
    there = paired_bootstrap(first, second, resamples=50, seed=seed)
    back = paired_bootstrap(second, first, resamples=50, seed=seed)
    flipped = (-back.difference, -back.high, -back.low, back.p_value)
    assert there == pytest.approx(flipped, rel=0, abs=1e-10)


def test_the_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    values = np.random.default_rng(0).random(7)
    together = bootstrap_means(values, resamples=19, seed=3)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 15)  # blocks of 2 rows
    apart = bootstrap_means(values, resamples=19, seed=3)
    assert together.shape == apart.shape == (19,)
    # numpy draws an odd number of 32-bit integers per block from 64-bit words, so only even blocks agree bit for bit
    np.testing.assert_array_equal(together, apart)


def test_a_hundred_thousand_items_fit_into_little_memory():
    values = np.ones(100_000)
    assert (bootstrap_means(values, resamples=100, seed=0) == 1).all()


def test_95_of_100_intervals_hold_the_true_difference():
    # 600 data sets of 60 items, first ~ B(.5), second right with .75: true difference .25.
    # The standard error of a share of .95 in 600 is √(.95 · .05 / 600) = .009; the bootstrap is a little narrow.
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(600):
        first, second = (rng.random(60) < 0.5).astype(float), (rng.random(60) < 0.75).astype(float)
        result = paired_bootstrap(first, second, resamples=400, seed=seed)
        held += result.low <= 0.25 <= result.high
    assert 0.92 <= held / 600 <= 0.97


def test_5_of_100_equal_runs_differ_by_the_p_value():
    rng = np.random.default_rng(1)
    found = 0
    for seed in range(600):
        first, second = rng.normal(size=60), rng.normal(size=60)
        found += paired_bootstrap(first, second, resamples=400, seed=seed).p_value < 0.05
    assert 0.03 <= found / 600 <= 0.08


def test_runs_on_other_items_are_refused():
    with pytest.raises(ValueError, match="both runs must have the same items, got 2 and 3"):
        paired_bootstrap([0, 1], [0, 1, 1], seed=0)
    with pytest.raises(ValueError, match="at least two finite values are needed, got 1"):
        paired_bootstrap([0], [1], seed=0)
    for values in ([0.0, math.nan], [math.inf], []):
        with pytest.raises(ValueError, match="at least two finite values"):
            bootstrap_mean_interval(values, seed=0)


# --- McNemar


def test_mcnemar_by_hand():
    # One item only the first has right, five only the second: 2 · (C(6,0) + C(6,1)) / 2⁶ = 14 / 64 = .21875.
    first = [1] + [0] * 5 + [1, 1, 0]
    second = [0] + [1] * 5 + [1, 1, 0]
    assert mcnemar(first, second) == (1, 5, pytest.approx(0.21875, **EXACT))


def test_runs_that_agree_everywhere_have_no_evidence_of_a_difference():
    assert mcnemar([1, 0, 1], [1, 0, 1]) == (0, 0, 1.0)
    assert mcnemar([], []) == (0, 0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_counts_what_a_loop_counts_and_is_symmetric(pairs):
    first, second = zip(*pairs)
    b = sum(a and not z for a, z in pairs)
    c = sum(z and not a for a, z in pairs)
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar(first, second) == (b, c, pytest.approx(min(1.0, 2 * tail), **EXACT))
    assert mcnemar(second, first) == (c, b, mcnemar(first, second).p_value)


def test_mcnemar_is_for_right_and_wrong_alone():
    with pytest.raises(ValueError, match=r"for values 0 and 1, got 0\.5"):
        mcnemar([0, 1], [0.5, 1])
    with pytest.raises(ValueError, match="the same items, got 1 and 2"):
        mcnemar([0], [0, 1])


# --- means and their spread


def test_the_spread_of_three_seeds_by_hand():
    # mean 0.6, deviations -.1, 0, .1: s² = .02 / 2 = .01, s = .1, s / √3 = .057735, t_2(.975) = 4.302653,
    # half width .248414
    spread = seed_spread([0.5, 0.6, 0.7])
    assert spread[:4] == pytest.approx((3, 0.6, 0.1, 0.0577350269), rel=0, abs=1e-10)
    assert spread[4:] == pytest.approx((0.351586, 0.848414), rel=0, abs=1e-6)


def test_one_seed_has_a_mean_and_no_spread():
    assert seed_spread([0.5]) == (1, 0.5, None, None, None, None)
    assert seed_spread([0.5, 0.5]) == (2, 0.5, 0.0, 0.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one value"):
        seed_spread([])


def test_95_of_100_t_intervals_of_three_seeds_hold_the_mean():
    # standard error √(.95 · .05 / 4000) = .0034
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    spreads = [seed_spread(row.tolist()) for row in draws]
    assert sum(spread.low <= 0 <= spread.high for spread in spreads) / 4000 == pytest.approx(0.95, abs=0.011)


def test_95_of_100_bootstrap_intervals_of_a_mean_hold_it():
    # the exponential with mean 1, 100 values each; skewed, so a little below .95
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean_interval(rng.exponential(size=100), seed=seed, resamples=400) for seed in range(600)]
    assert 0.91 <= sum(low <= 1 <= high for low, high in intervals) / 600 <= 0.96


def test_the_bootstrap_of_a_constant_is_the_constant_and_follows_the_seed():
    assert bootstrap_mean_interval([0.25] * 5, seed=0) == (0.25, 0.25)
    assert bootstrap_mean_interval([0.25], seed=0) == (-math.inf, math.inf)
    values = np.random.default_rng(0).random(30)
    first, again, other = (bootstrap_mean_interval(values, seed=seed, resamples=50) for seed in (1, 1, 2))
    assert first == again != other


def test_a_wider_confidence_makes_a_wider_interval():
    values = np.random.default_rng(0).random(50)
    low, high = bootstrap_mean_interval(values, seed=0, confidence=0.99)
    inner_low, inner_high = bootstrap_mean_interval(values, seed=0, confidence=0.8)
    assert low < inner_low < inner_high < high
    assert wilson_interval(5, 10, confidence=0.99)[0] < wilson_interval(5, 10)[0]


# --- several responses per item


def test_pass_at_k_by_hand():
    # 2 of 5 right: 1 - C(3,2)/C(5,2) = 1 - 3/10; with k = 4 only 3 are wrong, so one of 4 is right
    assert pass_at_k(2, 5, 2) == pytest.approx(0.7, **EXACT)
    assert (pass_at_k(2, 5, 4), pass_at_k(0, 5, 3), pass_at_k(5, 5, 1)) == (1.0, 0.0, 1.0)
    assert pass_at_k(1, 10_000, 5_000) == pytest.approx(0.5, **EXACT)  # no overflow


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_response(case):
    correct, total, k = case
    subsets = list(combinations([1] * correct + [0] * (total - correct), k))
    assert pass_at_k(correct, total, k) == pytest.approx(sum(map(max, subsets)) / len(subsets), **EXACT)


@pytest.mark.parametrize("case", [(3, 2, 1), (-1, 2, 1), (1, 2, 0), (1, 2, 3)])
def test_pass_at_k_refuses_impossible_counts(case):
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(*case)


def test_the_mean_at_1_is_pass_at_1():
    assert mean_at_k([1, 0, 0, 1, 0]) == pytest.approx(pass_at_k(2, 5, 1), **EXACT) == pytest.approx(0.4, **EXACT)
    with pytest.raises(ValueError, match="at least one response"):
        mean_at_k([])


@pytest.mark.parametrize(
    ("parsed", "values", "value"),
    [
        (["2", "1", None, "1"], [0, 1, 0, 1], 1),
        (["2", "1"], [0.25, 1], 0.25),  # a tie: the first seen
        (["1", "2", "2", "1"], [1, 0, 0, 1], 1),
        ([None, None, "1"], [0, 0, 0.5], 0.5),  # what cannot be read does not vote
        ([None, None], [0, 0], 0),
        (["1", "1"], [0.75, 0.5], 0.75),  # the value of the winner's first response
    ],
)
def test_the_majority_has_the_value_of_its_first_response(parsed, values, value):
    assert majority_at_k(parsed, values) == value


def test_a_majority_needs_as_many_values_as_answers():
    with pytest.raises(ValueError, match="got 1 and 2"):
        majority_at_k(["1", "1"], [1.0])
    with pytest.raises(ValueError, match="got 0 and 0"):
        majority_at_k([], [])


# --- rank correlation


def test_spearman_by_hand():
    # ranks 1 2 3 4 5 against 2 1 4 3 5: Σd² = 4, ρ = 1 - 6 · 4 / (5 · 24) = .8
    # artanh .8 = 1.098612, se = √((1 + .32) / 2) = .812404, · 1.959964 = 1.592282
    # tanh(-.493670) = -.457124, tanh(2.690894) = .990843
    result = spearman([10, 20, 30, 40, 50], [2, 1, 4, 3, 50])
    assert result.value == pytest.approx(0.8, **EXACT)
    assert (result.low, result.high) == pytest.approx((-0.457124, 0.990843), rel=0, abs=1e-6)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=30))
def test_spearman_is_that_of_scipy_ties_included(pairs):
    x, y = zip(*pairs)
    result = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert result == (None, None, None)
        return
    assert result.value == pytest.approx(float(stats.spearmanr(x, y).statistic), rel=0, abs=1e-12)  # scipy 1.17
    assert spearman(y, x).value == pytest.approx(result.value, **EXACT)
    if result.low is not None:
        assert -1 < result.low < result.value < result.high < 1


def test_spearman_knows_ranks_alone_and_flips_with_the_order():
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    result = spearman(x, y)
    assert spearman(np.exp(x), y) == pytest.approx(result, **EXACT)
    assert spearman(x, -y) == pytest.approx((-result.value, -result.high, -result.low), **EXACT)


def test_a_perfect_correlation_and_three_points_have_no_interval():
    assert spearman([1, 2, 3, 4, 5], [2, 4, 6, 8, 99]) == (1.0, None, None)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == (-1.0, None, None)
    # Σd² = 2, ρ = 1 - 6 · 2 / (3 · 8) = .5
    assert spearman([1, 2, 3], [1, 3, 2]) == (pytest.approx(0.5, **EXACT), None, None)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1]), ([1], [1]), ([1, math.nan], [1, 2]), ([1, 2], [math.inf, 0])])
def test_spearman_refuses_what_has_no_ranks(x, y):
    with pytest.raises(ValueError, match=r"are needed|must be finite"):
        spearman(x, y)


def test_95_of_100_rank_correlations_of_gaussians_lie_in_their_interval():
    # of a bivariate normal with correlation r the true ρ is 6/π arcsin(r/2); standard error √(.0475 / 2000) = .005
    rng, r = np.random.default_rng(0), 0.6
    truth, held = 6 / math.pi * math.asin(r / 2), 0
    for _ in range(2000):
        x, noise = rng.normal(size=(2, 60))
        result = spearman(x, r * x + math.sqrt(1 - r * r) * noise)
        held += result.low <= truth <= result.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


# --- odds ratio


def test_the_odds_ratio_by_hand():
    # 8 · 5 / (2 · 1) = 20; se = √(1/8 + 1/2 + 1/1 + 1/5) = √1.825 = 1.350926
    # exp(2.9957323 ± 1.9599640 · 1.3509256) = exp(.3479668), exp(5.6434978) = 1.416185, 282.4489
    result = odds_ratio(8, 2, 1, 5)
    assert result.value == pytest.approx(20.0, **EXACT)
    assert (result.low, result.high) == pytest.approx((1.416185, 282.4489), rel=1e-6)


def test_an_empty_cell_leaves_one_end_open():
    value, low, high = odds_ratio(5, 0, 3, 4)
    assert (value, high) == (math.inf, math.inf)
    # Given 5 + 3 successes of 12, P(a = 5 | ratio ψ) = C(5,5) C(7,3) ψ⁵ / Σ_x C(5,x) C(7,8-x) ψ^x, x from 1 to 5, is
    # .025 at the lower end.
    weights = {x: math.comb(5, x) * math.comb(7, 8 - x) * low**x for x in range(1, 6)}
    assert weights[5] / sum(weights.values()) == pytest.approx(0.025, abs=1e-6)
    assert odds_ratio(0, 5, 3, 4)[:2] == (0.0, 0.0)
    assert 0 < odds_ratio(0, 5, 3, 4).high < math.inf


@pytest.mark.parametrize("table", [(0, 0, 3, 4), (5, 5, 0, 0), (0, 5, 0, 4), (5, 0, 4, 0), (0, 0, 0, 0)])
def test_an_empty_row_or_column_has_no_odds_ratio(table):
    assert odds_ratio(*table) == (None, None, None)


@given(*[st.integers(1, 50)] * 4)
def test_swapping_the_groups_inverts_the_odds_ratio(a, b, c, d):
    value, low, high = odds_ratio(a, b, c, d)
    assert low < value < high
    assert odds_ratio(c, d, a, b) == pytest.approx((1 / value, 1 / high, 1 / low), rel=1e-12)


def test_counts_are_not_negative():
    with pytest.raises(ValueError, match="counts must be at least 0"):
        odds_ratio(1, -1, 2, 3)
