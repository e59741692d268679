"""Majority, EMPO and random rewards: hand-worked groups, laws, and what they refuse."""

import operator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_entropy.rewards.agreement import (
    empo_box_reward,
    empo_point_reward,
    empo_text_reward,
    majority_box_reward,
    majority_point_reward,
    majority_text_reward,
    random_reward,
)
from vlm_entropy.rewards.clusters import cluster_answers, cluster_shares, majority, majority_scores, text_key

TEXT = (majority_text_reward, empo_text_reward)
BOX = (majority_box_reward, empo_box_reward)
POINT = (majority_point_reward, empo_point_reward)


def both(rewards, answers, **columns):
    """Majority and EMPO scores of one group; None stands for a completion without answer."""
    texts = ["no answer" if answer is None else f"<answer>{answer}</answer>" for answer in answers]
    size = len(texts)
    columns = {name: [value] * size for name, value in columns.items()}
    return tuple(reward(texts, group=[5] * size, group_size=[size] * size, **columns) for reward in rewards)


def test_answers_join_the_first_cluster_whose_first_member_they_equal():
    assert cluster_answers(["a", "b", None, "a", "c", "b"], operator.eq) == [0, 1, None, 0, 2, 1]

    # 0.4 is near 0.0; 0.8 is near 0.4 but not near 0.0, the first member, so it opens a cluster that 1.0 joins
    def near(a, b):
        return abs(a - b) <= 0.5

    assert cluster_answers([0.0, 0.4, 0.8, 1.0, -0.5], near) == [0, 0, 1, 1, 0]
    assert cluster_answers([], operator.eq) == []


def test_the_majority_is_the_most_frequent_label_and_of_a_tie_the_first_seen():
    assert majority([0, 1, 1, 2]) == 1
    assert majority([1, 0, 0, 1]) == 1
    assert majority([None, None, None, 2]) == 2
    assert majority([None, None]) is None
    assert majority([]) is None


def test_scores_of_a_group_of_five_by_hand():
    labels = [0, 1, None, 1, 2]
    assert majority_scores(labels) == [0.0, 1.0, 0.0, 1.0, 0.0]
    # 1/5, 2/5, nothing, 2/5, 1/5
    assert cluster_shares(labels) == [0.2, 0.4, 0.0, 0.4, 0.2]
    assert majority_scores([None, None]) == cluster_shares([None, None]) == [0.0, 0.0]


@given(st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=1, max_size=16))
def test_shares_of_distinct_clusters_add_up_to_the_share_parsed_and_the_majority_has_the_largest(labels):
    shares, winners = cluster_shares(labels), majority_scores(labels)
    distinct = {label: share for label, share in zip(labels, shares) if label is not None}
    parsed = sum(label is not None for label in labels)
    assert sum(distinct.values()) == pytest.approx(parsed / len(labels), abs=1e-12)
    if parsed:
        assert max(shares) == shares[winners.index(1.0)]
        assert sum(winners) == max(shares) * len(labels)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.randoms())
def test_empo_moves_with_a_permutation_of_the_group(answers, random):
    order = list(range(len(answers)))
    random.shuffle(order)
    _, shares = both(TEXT, answers)
    _, permuted = both(TEXT, [answers[index] for index in order])
    assert permuted == [shares[index] for index in order]


def test_texts_agree_up_to_case_and_blanks_and_numbers_by_value():
    assert text_key(" The\n CAT ") == text_key("the cat")
    assert text_key("4.50") == text_key("+4.5") == 4.5
    assert text_key("4") != text_key("four")
    assert text_key("1e2") == "1e2"
    assert text_key(" \n") is None
    assert both(TEXT, ["4", "4.0", "5", "\\boxed{4}"]) == ([1.0, 1.0, 0.0, 1.0], [0.75, 0.75, 0.25, 0.75])


def test_completions_without_an_answer_neither_vote_nor_earn():
    # three of five say nothing; the majority is among the other two, the first seen of a tie
    assert both(TEXT, [None, "", " ", "a", "b"]) == ([0, 0, 0, 1.0, 0], [0, 0, 0, 0.2, 0.2])
    assert both(TEXT, [None, None, ""]) == ([0.0] * 3, [0.0] * 3)
    assert both(BOX, ["cat", "cat", "[0, 0, 1, 1]"]) == ([0, 0, 1.0], [0, 0, 1 / 3])
    assert both(POINT, ["cat", "cat", "(1, 1)"], image_size=(9, 9)) == ([0, 0, 1.0], [0, 0, 1 / 3])


def test_boxes_that_overlap_by_more_than_half_agree():
    # IoU with [0, 0, 10, 10]: 6 / 10 joins, 5 / 10 does not, though it is 5 / 6 with the second
    answers = ["[0, 0, 10, 10]", "[0, 0, 6, 10]", "[0, 0, 5, 10]", "[50, 50, 60, 60]"]
    assert both(BOX, answers) == ([1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("box", ["[9, 9, 1, 1]", "[5, 5, 5, 9]", "[nan, nan, nan, nan]"])
def test_boxes_that_enclose_nothing_agree_with_nobody(box):
    assert both(BOX, [box] * 3) == ([0.0] * 3, [0.0] * 3)


def test_points_within_a_twentieth_of_the_diagonal_agree():
    # 30 x 40 has the diagonal 50, so 2.5 pixels; 3-4-5: (1.5, 2) is 2.5 away, (2, 2) is 2.83
    answers = ["(0, 0)", "(1.5, 2)", "(2, 2)"]
    assert both(POINT, answers, image_size=(30, 40)) == ([1.0, 1.0, 0.0], [2 / 3, 2 / 3, 1 / 3])


def test_points_are_compared_in_pixels_of_the_original_image():
    # 200 x 10, diagonal 200.25, so 10.01 pixels; 50 thousandths are 10 pixels in x and half a pixel in y
    answers = ["(0, 0)", "(50, 0)", "(55, 0)", "(0, 1000)"]
    columns = {"image_size": (200, 10), "coordinate_space": "relative_1000"}
    assert both(POINT, answers, **columns)[0] == [1.0, 1.0, 0.0, 1.0]
    # resized to 20 x 20: 1 is 10 pixels in x, half a pixel in y
    resized = {"image_size": (200, 10), "input_size": (20, 20), "coordinate_space": "absolute_resized"}
    assert both(POINT, ["(0, 0)", "(1, 0)", "(1.1, 0)", "(0, 20)"], **resized)[0] == [1.0, 1.0, 0.0, 1.0]


def test_points_without_an_image_size_are_relative_or_not_judged():
    # a square of 1000: 5 % of 1414.2 is 70.7
    assert both(POINT, ["(0, 0)", "(70, 0)", "(71, 0)"], coordinate_space="relative_1000")[0] == [1.0, 1.0, 0.0]
    assert both(POINT, ["(0, 0)", "(0, 0.07)", "(0, .071)"], coordinate_space="relative_1")[0] == [1.0, 1.0, 0.0]
    assert both(POINT, ["(0, 0)", "cat", None]) == ([None] * 3, [None] * 3)
    assert both(POINT, ["(0, 0)"], image_size=None, coordinate_space="absolute_resized") == ([None], [None])


def test_groups_are_told_apart_by_number_in_whatever_order_their_rows_come():
    texts = [f"<answer>{answer}</answer>" for answer in ("a", "b", "a", "a", "b", "b")]
    group, size = [3, 9, 3, 9, 3, 9], [3] * 6
    # group 3 says a a b, group 9 says b a b
    assert majority_text_reward(texts, group, size) == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert empo_text_reward(texts, group, size) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 3, 1 / 3, 2 / 3], abs=1e-12)


@pytest.mark.parametrize("reward", [*TEXT, *BOX, *POINT])
@pytest.mark.parametrize("sizes", [[4, 4], [2, 3], [1, 1]])
def test_a_group_that_is_not_whole_is_refused_with_what_to_change(reward, sizes):
    message = r"Group 7 has 2 of .*per_device_train_batch_size x steps_per_generation must be a multiple of num_gen"
    with pytest.raises(ValueError, match=message):
        reward(["a", "b"], group=[7, 7], group_size=sizes)


@pytest.mark.parametrize("reward", [*TEXT, *BOX, *POINT, random_reward])
def test_no_gold_answer_is_read(reward):
    class Unreadable:
        def __getitem__(self, row):
            raise AssertionError("read")

        __iter__ = __str__ = __getitem__

    columns = {"group": [0, 0], "group_size": [2, 2], "image_size": [(9, 9)] * 2}
    texts = ["<answer>[1, 1, 2, 2]</answer>", "<answer>(1, 2)</answer>"]
    assert reward(texts, solution=Unreadable(), **columns) == reward(texts, **columns)


def test_kinds_are_logged_under_the_name_of_each_reward():
    for reward in (*TEXT, *BOX, *POINT):
        logged = {}
        answer = {"t": "a", "b": "[0, 0, 1, 1]", "p": "(0, 0)"}[reward.__name__.split("_")[1][0]]
        texts = [f"<answer>{answer}</answer>", "<answer> </answer>", "x", "x"]
        columns = {"group": [0] * 4, "group_size": [4] * 4, "image_size": [(9, 9)] * 4}
        reward(texts, log_metric=logged.__setitem__, **columns)
        kinds = {"parsed": 0.25, "no_answer": 0.5, "malformed": 0.25, "out_of_image": 0.0}
        assert logged == {f"{reward.__name__}/{kind}": share for kind, share in kinds.items()}


def at_step(step, texts):
    return random_reward(texts, trainer_state=SimpleNamespace(global_step=step))


def test_the_random_reward_is_fair_and_its_draws_do_not_repeat_over_rows_or_steps():
    draws = at_step(0, ["same"] * 4000)
    # a fair coin: mean 1/2, standard deviation of the mean 1 / (2 sqrt(4000)) = 0.0079; four of them
    assert abs(sum(draws) / 4000 - 0.5) < 0.032
    assert set(draws) == {0.0, 1.0}
    for other in (at_step(1, ["same"] * 4000), draws[1:] + draws[:1], at_step(0, ["other"] * 4000)):
        # independent fair coins agree half of the time
        assert abs(sum(map(operator.eq, draws, other)) / 4000 - 0.5) < 0.032


def test_the_random_reward_draws_the_same_after_a_resume_and_knows_nothing_of_the_prompt():
    assert at_step(17, ["a", "b", "c"] * 9) == at_step(17, ["a", "b", "c"] * 9)
    assert random_reward(["a"] * 9, prompts=["p"] * 9) == at_step(0, ["a"] * 9)
    assert at_step(17, [[{"role": "assistant", "content": "a"}]] * 9) == at_step(17, ["a"] * 9)
    assert random_reward(["\ud800"])[0] in (0.0, 1.0)
