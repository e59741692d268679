"""Multiple choice, and yes or no."""

import pytest

from vlm_entropy.rewards.choices import choice_reward, yes_no_reward
from vlm_entropy.rewards.parsing import find_choice, find_yes_no


def answered(answer):
    return f"<think>it is C, no, (D)</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "B"),
        (" b\n", "B"),
        ("(B)", "B"),
        ("(b)", "B"),
        ("[B]", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("(B).", "B"),
        ("\\boxed{B}", "B"),
        ("so \\boxed{(B) the cat}.", "B"),
        ("B: the cat", "B"),
        ("B. The U.S. Navy", "B"),
        ("(B) the cat (not the dog)", "B"),
        ("(B): the cat", "B"),
        ("B: text B.", "B"),
        ("<think>A</think>B", "B"),
        ("<think>\\boxed{A}</think>\\boxed{B}", "B"),
        ("\\boxed{A} \\boxed{B}", "B"),
        ("A or B", None),
        ("A, B", None),
        ("AB", None),
        ("A. B.", None),
        ("(A) (B)", None),
        ("(A),(B)", None),
        ("A: cat B: dog", None),
        ("A: cat, (B) dog", None),
        ("A. cat; B. dog", None),
        ("A cat", None),
        ("a: cat", None),
        ("the cat", None),
        ("Β", None),  # a Greek capital beta
        ("1", None),
        ("\\boxed{}", None),
        ("<think>\\boxed{B}", None),
        ("<think>B</think>", None),
        ("", None),
    ],
)
def test_the_choice_is_one_letter_alone_or_before_its_text(text, choice):
    assert find_choice(text) == choice


def test_a_choice_scores_by_its_letter_and_the_gold_may_be_in_any_form():
    golds = ["B", "b", "(B)", "B. the cat", "A", "the cat", None]
    assert choice_reward([answered("(B)")] * 7, golds) == [1.0, 1.0, 1.0, 1.0, 0.0, None, None]


def test_a_box_without_answer_tags_is_an_answer_and_one_in_the_thinking_is_not():
    texts = ["<think>a</think>\\boxed{B}", "<think>\\boxed{B}</think>", "<think>\\boxed{B}", "B"]
    assert choice_reward(texts, ["B"] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_all_letters_at_once_earn_nothing():
    hedge = "A. B. C. D."
    assert choice_reward([answered(hedge)] * 4, list("ABCD")) == [0.0] * 4


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("YES, it is", "yes"),
        ("yes yes", "yes"),
        ("(no)", "no"),
        ("nothing", None),
        ("I know, notes on yesterday", None),
        ("yes and no", None),
        ("no-one", None),
        ("non", None),
        ("", None),
    ],
)
def test_only_whole_words_say_yes_or_no_and_both_say_neither(text, word):
    assert find_yes_no(text) == word


def test_yes_and_no_score_against_a_gold_that_says_one_of_them():
    texts = [answered("yes"), answered("No"), answered("yes, no"), answered("maybe"), "yes", answered("yes")]
    logged = {}
    scores = yes_no_reward(texts, ["Yes", "Yes", "Yes", "Yes", "Yes", "perhaps"], log_metric=logged.__setitem__)
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0, None]
    kinds = {"parsed": 0.4, "no_answer": 0.2, "malformed": 0.4, "out_of_image": 0.0}
    assert logged == {f"yes_no_reward/{kind}": share for kind, share in kinds.items()}


def test_saying_neither_does_not_match_a_gold_that_says_neither():
    assert yes_no_reward([answered("maybe"), "", answered("")], ["maybe", "", None]) == [None, None, None]


def test_choices_log_under_their_name():
    logged = {}
    choice_reward([answered("A or B"), answered("A")], ["A", "A"], log_metric=logged.__setitem__)
    assert logged["choice_reward/malformed"] == logged["choice_reward/parsed"] == 0.5
