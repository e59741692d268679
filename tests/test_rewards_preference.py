"""The verdict of a reasoning reward model."""

import pytest

from vlm_entropy.rewards.parsing import find_verdict
from vlm_entropy.rewards.preference import preference_reward


def answered(answer):
    return f"<think>1 is worse than 2</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1", 1),
        (" 2\n", 2),
        ("(1)", 1),
        ("[[2]]", 2),
        ("2.", 2),
        ("Answer 1", 1),
        ("response 2.", 2),
        ("0", None),
        ("3", None),
        ("12", None),
        ("1.5", None),
        ("-1", None),
        ("1 2", None),
        ("1 or 2", None),
        ("tie", None),
        ("neither 1", None),
        ("Answer 1 is better", None),
        ("١", None),
        ("²", None),
        ("", None),
    ],
)
def test_the_verdict_is_one_of_two_digits_alone(text, verdict):
    assert find_verdict(text) == verdict


def test_a_verdict_scores_against_the_gold_and_a_tie_or_both_is_malformed():
    logged = {}
    texts = [answered("1"), answered("2"), answered("1 2"), answered("tie"), "1", answered("1"), answered("1")]
    scores = preference_reward(texts, [1, "1", 1, 1, 1, 0, "tie"], log_metric=logged.__setitem__)
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0, None, None]
    kinds = {"parsed": 0.4, "no_answer": 0.2, "malformed": 0.4, "out_of_image": 0.0}
    assert logged == {f"preference_reward/{kind}": share for kind, share in kinds.items()}


def test_the_same_answer_cannot_be_right_in_both_orders():
    for answer in ("1", "2", "1 2", "Answer 1 and Answer 2"):
        assert sum(preference_reward([answered(answer)] * 2, [1, 2])) <= 1.0
