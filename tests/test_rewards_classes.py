"""Class names: the strict rule, the repaired containment rule, and the published one with its holes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_entropy.rewards.classes import (
    class_containment_match,
    class_containment_reward,
    class_match,
    class_reward,
    published_class_match,
)

PETS = ["Abyssinian", "american_bulldog", "american_pit_bull_terrier", "Bengal", "Maine_Coon", "scottish_terrier"]


def answered(answer):
    return f"<think>a cat</think><answer>{answer}</answer>"


def scores(answer, gold):
    return tuple(reward([answered(answer)], [gold])[0] for reward in (class_reward, class_containment_reward))


@pytest.mark.parametrize(
    ("answer", "gold", "strict", "containment", "published"),
    [
        ("Maine Coon", "Maine_Coon", 1.0, 1.0, True),
        ("  maine_COON\n", "Maine_Coon", 1.0, 1.0, True),
        ("mainecoon", "Maine_Coon", 1.0, 0.0, True),
        ("\\boxed{Maine Coon}", "Maine_Coon", 1.0, 1.0, True),
        ("the Maine Coon", "Maine_Coon", 0.0, 1.0, True),  # 2 of 3 words
        ("a big Maine Coon", "Maine_Coon", 0.0, 0.0, True),  # 2 of 4 words
        ("Acura TL Sedan", "2012 Acura TL Sedan", 0.0, 1.0, True),  # 3 of 4 words
        ("Sedan", "2012 Acura TL Sedan", 0.0, 0.0, True),
        ("2012 TL Sedan", "2012 Acura TL Sedan", 0.0, 0.0, False),  # not consecutive
        ("rose", "pink primrose", 0.0, 0.0, True),
        ("primrose", "pink primrose", 0.0, 0.0, True),  # 1 of 2 words
        ("e", "Bengal", 0.0, 0.0, True),
        ("Bengal Abyssinian", "Bengal", 0.0, 0.0, True),
        ("707", "707-320", 0.0, 0.0, True),
        ("707 320", "707-320", 0.0, 1.0, False),
        ("Birman", "Bengal", 0.0, 0.0, False),
        ("", "Bengal", 0.0, 0.0, True),
        (" _ ", "Bengal", 0.0, 0.0, True),
    ],
)
def test_each_rule_on_one_example(answer, gold, strict, containment, published):
    assert scores(answer, gold) == (strict, containment)
    if "\\" not in answer:
        assert published_class_match(answer, gold) is published


def test_a_list_of_all_classes_earns_nothing_though_the_published_rule_takes_it():
    listing = ", ".join(PETS)
    for gold in PETS:
        assert scores(listing, gold) == (0.0, 0.0)
        assert published_class_match(listing, gold)


@given(st.lists(st.sampled_from(PETS), min_size=2, max_size=2, unique=True))
def test_naming_two_classes_never_matches_both(names):
    for answer in (" ".join(names), ", ".join(names), " or ".join(names)):
        assert sum(class_containment_match(answer, name) for name in names) < 2


@given(st.text(max_size=20))
def test_containment_takes_every_name_that_is_its_gold_and_is_symmetric(name):
    assert class_containment_match(f"x{name}", f"x{name}")
    assert class_containment_match(name, "a b c") == class_containment_match("a b c", name)


def test_two_empty_names_do_not_match():
    assert not class_match("", "_")
    assert not class_containment_match("", "_")
    assert published_class_match("", "_")


@pytest.mark.parametrize("gold", [None, "", " ", "_", "<>"])
def test_a_gold_without_a_letter_or_digit_cannot_be_judged(gold):
    assert scores("e", gold) == (None, None)


def test_a_completion_without_an_answer_or_with_a_blank_one_is_wrong_and_counted_apart():
    logged = {}
    texts = [answered("Bengal"), answered(" "), "Bengal", "<think><answer>Bengal</answer></think>"]
    for reward in (class_reward, class_containment_reward):
        assert reward([*texts, texts[0]], ["Bengal"] * 4 + [""], log_metric=logged.__setitem__) == [1, 0, 0, 0, None]
        kinds = {"parsed": 0.25, "no_answer": 0.5, "malformed": 0.25, "out_of_image": 0.0}
        assert {key: value for key, value in logged.items() if key.startswith(f"{reward.__name__}/")} == {
            f"{reward.__name__}/{kind}": share for kind, share in kinds.items()
        }


def test_a_numeric_gold_is_a_name_like_any_other():
    assert scores("707", 707) == (1.0, 1.0)
