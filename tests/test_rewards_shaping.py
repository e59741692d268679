"""Length, repetition and overlong shaping: hand-worked values and DAPO's formula against TRL's."""

import math
import pickle

import pytest
from trl.rewards import get_soft_overlong_punishment

from vlm_entropy.rewards.shaping import SoftOverlong, length_reward, repetition_reward


def length(tokens, text="a"):
    return length_reward([text], completion_ids=[[7] * tokens])[0]


def test_the_length_reward_falls_along_a_half_cosine_to_one_half():
    assert length(0) == 1.0
    # 512 tokens: cos(pi / 2) = 0, so 0.5 + 0.25
    assert length(512) == pytest.approx(0.75, abs=1e-12)
    # 256 tokens: cos(pi / 4) = sqrt(1/2)
    assert length(256) == pytest.approx(0.75 + 0.25 * math.sqrt(0.5), abs=1e-12)
    assert length(1024) == pytest.approx(0.5, abs=1e-12)


def test_a_completion_of_2048_tokens_earns_no_more_than_one_of_1024():
    assert length(2048) == length(1024) == length(5000)
    assert all(length(n) >= length(n + 1) for n in range(0, 3000, 7))


@pytest.mark.parametrize("text", ["", "  \n\t", [{"role": "assistant", "content": None}]])
def test_an_empty_completion_earns_no_length_reward(text):
    assert length(1, text) == 0.0


def test_without_token_ids_a_length_cannot_be_judged():
    assert length_reward(["a", ""], solution=["x", "x"]) == [None, None]


def test_a_text_is_charged_for_the_six_word_runs_that_it_repeats():
    # seven words, runs starting at 0 and 1, both "a a a a a a"
    assert repetition_reward(["a a a a a a a"]) == [-0.5]
    # twelve words a..f a..f: runs at 0..6, the one at 6 repeats the one at 0
    assert repetition_reward(["a b c d e f A B C D E F"]) == [pytest.approx(-1 / 7, abs=1e-12)]
    assert repetition_reward(["a b c d e f g", "a a a a a", ""]) == [0.0, 0.0, 0.0]


def test_a_listed_box_is_charged_when_box_and_label_come_again():
    box = '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}'
    same = '{"label": "cat", "bbox_2d": [1, 2, 3, 4], "score": 2}'
    other = '{"bbox_2d": [1, 2, 3, 4], "label": "dog"}'
    moved = '{"bbox_2d": [1, 2, 3, 5], "label": "cat"}'
    texts = [
        f"<answer>```json\n[{', '.join(boxes)}]\n```</answer>" for boxes in ([box, same], [box, other], [box, moved])
    ]
    assert repetition_reward(texts) == [-0.5, 0.0, 0.0]
    # three of four repeat
    assert repetition_reward([f"<answer>[{', '.join([box] * 4)}]</answer>"]) == [-0.75]


@pytest.mark.parametrize(
    ("entries", "score"),
    [
        ("[1, 2, 1, 1]", -0.5),
        ("[null, null]", -0.5),
        ('[{"bbox_2d": null}, {"bbox_2d": 3, "label": []}]', 0.0),
        ("[[], {}, [], {}]", -0.5),
        ('[{"x": 1}, {"x": 2}]', 0.0),
        ("[NaN, NaN]", -0.5),
        ("[]", 0.0),
        ("[" * 50_000 + "]" * 50_000, 0.0),
    ],
    ids=range(8),
)
def test_entries_that_are_no_boxes_are_counted_and_never_raise(entries, score):
    assert repetition_reward([f"<answer>{entries}</answer>"]) == [score]


def test_a_list_outside_the_answer_or_a_broken_one_is_read_as_words():
    words = "x " * 7
    # runs of seven words "x": the list is one more word, so 3 runs with 2 distinct
    assert repetition_reward([f"{words} [1,1,1]"]) == [pytest.approx(-1 / 3, abs=1e-12)]
    assert repetition_reward([f"<answer> {words} [1,1 </answer>"])[0] < 0.0
    assert repetition_reward(["<answer>[1,1</answer>"]) == [0.0]


def test_no_repetition_is_positive_zero():
    assert math.copysign(1.0, repetition_reward(["a"])[0]) == 1.0


@pytest.mark.parametrize(("max_length", "cache"), [(100, 20), (100, 100), (5, 1)])
def test_soft_overlong_is_the_formula_of_dapo_as_in_trl(max_length, cache):
    # independent source: the reward of trl 1.16
    ids = [[0] * n for n in range(2 * max_length)]
    ours = SoftOverlong(max_length=max_length, cache=cache)(completions=[""] * len(ids), completion_ids=ids)
    assert ours == get_soft_overlong_punishment(max_length, cache)(completion_ids=ids)


def test_soft_overlong_by_hand():
    reward = SoftOverlong(max_length=100, cache=20)
    ids = [[0] * n for n in (0, 80, 85, 90, 100, 101, 500)]
    # (80 - 85) / 20 = -0.25
    assert reward(completions=[""] * 7, completion_ids=ids, prompts=None) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]


def test_soft_overlong_can_be_pickled_and_keeps_its_name():
    reward = pickle.loads(pickle.dumps(SoftOverlong(max_length=10, cache=5)))  # noqa: S301
    assert reward.__name__ == "soft_overlong_reward"
    assert reward(completions=["a"], completion_ids=[[0] * 6]) == [-0.2]


@pytest.mark.parametrize("cache", [0, -1, 11])
def test_a_cache_outside_the_length_is_refused(cache):
    with pytest.raises(ValueError, match=f"cache is {cache}; .* 10, is allowed"):
        SoftOverlong(max_length=10, cache=cache)
