"""The formats with a box of pixels and with a boxed answer; the plain format is in test_rewards_parsing."""

import pytest

from vlm_entropy.rewards.formats import box_format_reward, boxed_format_reward, format_reward
from vlm_entropy.rewards.parsing import find_boxed, find_final_answer, read_number


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>[1, 2, 3, 4]</answer>", 1.0),
        ('<think></think>\n<answer>```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]\n```</answer>\n', 1.0),
        ("<think>a</think><answer>{'Position': [-1.5, 2, 3, 4]}</answer>", 1.0),
        ("<think>a</think><answer>the cat</answer>", 0.0),
        ("<think>[1, 2, 3, 4]</think><answer>it</answer>", 0.0),
        ("<think>a</think><answer>[1, 2, 3]</answer>", 0.0),
        ("<think>a</think><answer>[nan, nan, nan, nan]</answer>", 0.0),
        ("<think>a</think>so<answer>[1, 2, 3, 4]</answer>", 0.0),
        ("<think>a</think><answer>[1, 2, 3, 4]</answer><answer></answer>", 0.0),
        ("<answer>[1, 2, 3, 4]</answer>", 0.0),
        ("[1, 2, 3, 4]", 0.0),
        ("", 0.0),
    ],
)
def test_the_box_format_is_the_format_with_a_box_in_the_answer(text, score):
    assert box_format_reward([text]) == [score]
    assert box_format_reward([text])[0] <= format_reward([text])[0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think>\\boxed{4}", 1.0),
        ("\n<think>a</think>\nThe answer is $\\boxed{\\frac{1}{2}}$.\n", 1.0),
        ("<think>try \\boxed{3}</think>\\boxed{4}", 1.0),
        ("<think>a</think>\\boxed{\\{}", 1.0),
        ("<think>a</think>\\boxed{}", 0.0),
        ("<think>a</think>\\boxed{ \n}", 0.0),
        ("<think>a</think>\\boxed{4", 0.0),
        ("<think>a</think>\\boxed{\\frac{1}{2}", 0.0),
        ("<think>a</think>\\boxed{3} \\boxed{4}", 0.0),
        ("<think>a</think>\\boxed{\\boxed{4}}", 0.0),
        ("<think>\\boxed{4}</think>", 0.0),
        ("<think>a\\boxed{4}", 0.0),
        ("<think>a</think></think>\\boxed{4}", 0.0),
        ("<think><think>a</think>\\boxed{4}", 0.0),
        ("so <think>a</think>\\boxed{4}", 0.0),
        ("</think><think>\\boxed{4}", 0.0),
        ("\\boxed{4}", 0.0),
        ("<think>a</think>4", 0.0),
        ("", 0.0),
    ],
)
def test_the_boxed_format_is_one_think_block_then_one_balanced_box(text, score):
    assert boxed_format_reward([text]) == [score]
    assert boxed_format_reward([[{"role": "assistant", "content": text}]], solution=["x"]) == [score]


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("\\boxed{4}", "4"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("\\boxed{}", ""),
        ("\\boxed{1} then \\boxed{2", None),
        ("\\boxed 4", None),
        ("<think>\\boxed{3}</think>\\boxed{4}", "4"),
        ("<think>\\boxed{3}</think>4", None),
        ("<think>\\boxed{3}", None),
        ("</think><think>\\boxed{3}", None),
        ("\\boxed{3} <think>", "3"),
        ("{}", None),
    ],
)
def test_the_boxed_answer_is_the_last_one_after_the_thinking_with_balanced_braces(text, boxed):
    assert find_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("\\boxed{4}", "4"),
        ("<think>a</think><answer>so \\boxed{4}</answer>", "4"),
        ("<answer>4</answer> \\boxed{5}", "4"),
        ("\\boxed{5} <answer>4</answer>", "4"),
        ("<answer></answer>\\boxed{5}", ""),
        ("4", None),
    ],
)
def test_the_final_answer_is_in_answer_tags_or_else_boxed(text, answer):
    assert find_final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 4\n", 4.0),
        ("+04.50", 4.5),
        ("-.5", -0.5),
        ("4 5", None),
        ("1e5", None),
        ("٣", None),
        ("nan", None),
        ("", None),
    ],
)
def test_a_number_is_a_plain_number_alone(text, value):
    assert read_number(text) == value
