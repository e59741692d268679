"""Reward-model benches: both orders, the published readings, and the figures of a whole set by hand."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_files import lines, png

from vlm_entropy.data.convert import convert
from vlm_entropy.data.pairs import ordered_rows
from vlm_entropy.data.pairs_task import make_pairs
from vlm_entropy.eval.benchmarks.preferences import (
    PREFERENCES,
    both_orders,
    find_answered,
    find_judgement,
    find_mark,
    order_totals,
)
from vlm_entropy.eval.items import read_items, to_item
from vlm_entropy.eval.protocols import Item, Score, View
from vlm_entropy.eval.summary import summarise

VIEW = View("qwen2_5_vl", "absolute_resized")
OURS = PREFERENCES["pairs"].protocols["vlm_entropy"]
SAYS = {"1": "<think>a</think><answer>1</answer>", "2": "<think>b</think><answer>2</answer>", "?": "Both are good."}


def item(name="7", label="2", **columns):
    return Item(name, "What is it?", label, columns={"responses": ["A cat.", "A dog."], **columns})


def ask(protocol, one):
    [message] = protocol.prompt(one, VIEW)
    assert message["role"] == "user"
    return message["content"]


def figures(answers, columns=None):
    """Totals of pairs by the digits that are said in the orders 12 and 21; each pair's label is "1"."""
    items, scores = [], []
    for name, (first, second) in answers.items():
        asked = both_orders(item(name, "1", **(columns or {}).get(name, {})))
        for one, said in zip(asked, (first, second), strict=True):
            items.append(one)
            scores.append([OURS.score(one, SAYS[digit], VIEW) for digit in said])
    return order_totals(items, scores)


# --- both orders


def test_a_pair_is_asked_in_both_orders():
    first, second = both_orders(item(category="general"))
    assert first == Item(
        "7/12",
        "What is it?",
        "2",
        columns={"responses": ["A cat.", "A dog."], "order": "12", "category": "general"},
        unit="7",
    )
    assert (second.id, second.answer, second.columns["order"]) == ("7/21", "1", "21")
    assert second.columns["responses"] == ["A dog.", "A cat."]


def test_a_row_whose_text_is_the_whole_prompt_is_asked_its_question_alone():
    record = {"id": 1, "responses": ["a", "b"], "conversations": [{"from": "human", "value": "Q?"}, {"value": "1"}]}
    [row] = ordered_rows([record], 0)
    plain = PREFERENCES["pairs"].protocols["plain"]
    assert [ask(plain, one) for one in both_orders(to_item(row, ""))] == [
        "Question: Q?\nResponse 1: a\nResponse 2: b\nWhich response is better, 1 or 2?",
        "Question: Q?\nResponse 1: b\nResponse 2: a\nWhich response is better, 1 or 2?",
    ]


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (item(responses=["a"]), "Item '7': responses is ['a']; two texts are needed."),
        (item(label="tie"), "Item '7': the preference is 'tie'; allowed are 1 and 2."),
    ],
)
def test_an_item_that_is_no_pair_is_named(one, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        both_orders(one)


# --- prompts


def test_our_prompt_is_that_of_training():
    assert ask(OURS, both_orders(item())[1]) == (
        "Question: What is it?\nResponse 1: A dog.\nResponse 2: A cat.\nWhich response is better, 1 or 2? First "
        "output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> "
        "tags."
    )


def test_the_published_prompts_hold_question_and_answers_in_their_places():
    braces = item(responses=["{question}", "%s {0}"])
    judged = ask(PREFERENCES["vl_rewardbench"].protocols["official"], braces)
    assert "Question: What is it?\n\nAnswer 1: {question}\n\nAnswer 2: %s {0}\n\nPlease evaluate both" in judged
    assert "For example: Overall Judgment: Answer X is better.\n\nYour response should be structured" in judged
    marked = ask(PREFERENCES["multimodal_rewardbench"].protocols["official"], braces)
    assert marked.endswith(
        '"[[B]]" if assistant B is better.\n\n[User Question]\nWhat is it?\n\n'
        "[The Start of Assistant A's Answer]\n{question}\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\n%s {0}\n[The End of Assistant B's Answer]"
    )


# --- readings


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Overall Judgment: Answer 1 is better.", "1"),
        ("**Overall Judgment**\n- **Answer 2** is the better", "2"),
        ("THEREFORE, answer 2 is slightly better", "2"),
        (
            "Therefore, Answer 1\nis the slightly\nbetter",
            "1",
        ),  # line breaks are deleted, "Answer 1is the slightlybetter"
        ("Overall Judgment: Answer 1 is better than thought, but Answer 2 is better.", "2"),  # the pattern is greedy
        ("Answer 1 is better. Therefore Answer 2 is better.", "2"),
        ("Answer 1 is better.", None),  # no judgment before it
        ("Answer 1 is better. Therefore it wins.", None),
        ("Overall Judgment: Answer 2 is much better.", None),
        ("Overall Judgment: Response 1 is better.", None),
        ("Overall Judgment: Answer 3 is better.", None),
        ("Overall Judgment: Answer X is better.", None),
        ("Overall Judgment: both are equal.", None),
        ("", None),
    ],
)
def test_vl_rewardbench_reads_the_last_judgment(text, verdict):
    assert find_judgement(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("[[A]]", "1"), ("so [[B]].", "2"), ("[[B]], not [[A]]", "1"), ("[A]", None), ("[[C]]", None), ("[[a]]", None)],
)
def test_multimodal_rewardbench_looks_for_a_first(text, verdict):
    assert find_mark(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (SAYS["1"], "1"),
        ("<think><answer>1</answer></think><answer>Response 2</answer>", "2"),
        ("\\boxed{2}", "2"),
        ("<answer>1 or 2</answer>", None),
        ("<answer>tie</answer>", None),
        ("2", None),
    ],
)
def test_our_answer_is_read_as_the_reward_of_training_does(text, verdict):
    assert find_answered(text) == verdict


JUDGEMENTS = ["Overall Judgment", "Therefore", "Answer ", " is ", "the ", "slightly ", "better", "*", "\n", " "]
ANSWERS = [
    "1",
    "2",
    "9" * 5000,
    "٣",
    "[[A]]",
    "[[B]]",
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
]
PIECES = st.lists(st.sampled_from([*JUDGEMENTS, *ANSWERS])).map("".join)


@given(st.one_of(st.text(), PIECES))
def test_every_text_gets_a_score_of_the_same_values(text):
    for benchmark in PREFERENCES.values():
        for protocol in benchmark.protocols.values():
            score = protocol.score(both_orders(item())[0], text, VIEW)
            assert list(score.values) == ["accuracy", "unparsed", "says_first"]
            assert set(score.values.values()) <= {0.0, 1.0}
            assert score.parsed in {"1", "2", None}
            assert score.values["unparsed"] == (score.parsed is None)
            assert score.values["accuracy"] == (score.parsed == "2")


def test_a_long_answer_is_read_in_linear_time():
    # the published pattern needs a time that grows with the square here
    assert find_judgement("Therefore " + "Answer 1 is the " * 100_000) is None
    assert find_judgement("Therefore " * 200_000 + " " * 200_000) is None
    assert find_judgement("Therefore Answer" + " " * 500_000 + "1 is" + " " * 500_000) is None


# --- one response


def test_a_verdict_is_right_wrong_or_none():
    first, second = both_orders(item(label="2"))
    assert OURS.score(first, SAYS["2"], VIEW) == Score({"accuracy": 1.0, "unparsed": 0.0, "says_first": 0.0}, "2")
    assert OURS.score(second, SAYS["2"], VIEW) == Score({"accuracy": 0.0, "unparsed": 0.0, "says_first": 0.0}, "2")
    assert OURS.score(second, SAYS["1"], VIEW) == Score({"accuracy": 1.0, "unparsed": 0.0, "says_first": 1.0}, "1")
    assert OURS.score(first, SAYS["?"], VIEW) == Score({"accuracy": 0.0, "unparsed": 1.0, "says_first": 0.0}, None)


# --- the whole set


def test_who_always_says_1_is_right_in_half_and_never_consistent():
    items = [one for name in "abc" for one in both_orders(item(name, "12"[name == "b"]))]
    scores = [[OURS.score(one, SAYS["1"], VIEW)] for one in items]
    metrics = summarise(items, scores, OURS)["metrics"]
    assert (metrics["accuracy"]["value"], metrics["says_first"]["value"]) == (0.5, 1.0)
    assert order_totals(items, scores) == {
        "consistency": 0.0,
        "both_orders_correct": 0.0,
        "says_first_of_parsed": 1.0,
    }


def test_the_totals_of_four_pairs_by_hand():
    # The label is 1, so 2 is right in the order 21. a: right twice. b: says 1 twice, right once, inconsistent.
    # c: 2 then 1, both name response 2: consistent and wrong. d: nothing, then right.
    assert figures({"a": "12", "b": "11", "c": "21", "d": "?2"}) == {
        "consistency": 2 / 4,
        "both_orders_correct": 1 / 4,
        "says_first_of_parsed": 4 / 7,
    }


def test_the_totals_without_any_verdict():
    assert figures({"a": "??"}) == {"consistency": 0.0, "both_orders_correct": 0.0}


def test_the_macro_accuracy_weighs_categories_alike():
    # general: a right twice, b once: 3/4. reasoning: c never: 0.
    columns = {"a": {"category": "general"}, "b": {"category": "general"}, "c": {"category": "reasoning"}}
    totals = figures({"a": "12", "b": "11", "c": "21"}, columns)
    assert totals["macro_accuracy"] == pytest.approx((3 / 4 + 0) / 2, rel=0, abs=1e-12)
    assert OURS.cells(item(category="general")) == {"category": "general"}
    assert OURS.cells(item()) == {}


def test_acc_plus_asks_for_all_pairs_of_a_question():
    # Question x has the pairs a and b, y has c. In the order 12 all three say 1: x and y are right, 2/2. In the order
    # 21 a and b say 2 (right), c says 1 (wrong): 1/2. Mean 3/4; both orders: x alone, 1/2.
    columns = {"a": {"question_id": "x"}, "b": {"question_id": "x"}, "c": {"question_id": "y"}}
    totals = figures({"a": "12", "b": "12", "c": "11"}, columns)
    assert (totals["acc_plus"], totals["acc_plus_both_orders"]) == (0.75, 0.5)
    # one wrong pair spoils its question in that order: 12 -> y alone, 21 -> x alone
    totals = figures({"a": "12", "b": "22", "c": "11"}, columns)
    assert (totals["acc_plus"], totals["acc_plus_both_orders"]) == (0.5, 0.0)


def test_with_several_samples_each_goes_with_its_like():
    # sample 0: 1 and 2, right twice and consistent; sample 1: 1 and 1; sample 2: 2 and 2
    totals = figures({"a": ("112", "212")})
    assert totals["consistency"] == totals["both_orders_correct"] == pytest.approx(1 / 3, rel=0, abs=1e-12)
    # acc_plus over one question: order 12 is right in 2 of 3 samples, order 21 in 2 of 3
    assert figures({"a": ("112", "212")}, {"a": {"question_id": 1}})["acc_plus"] == pytest.approx(
        2 / 3, rel=0, abs=1e-12
    )


def test_the_majority_of_k_votes_is_scored_beside_the_mean():
    items = both_orders(item(label="1"))
    # order 12: votes 1, 2, 1 -> 1, right. order 21: None, 1, None -> 1, wrong.
    said = ("121", "?1?")
    scores = [[OURS.score(one, SAYS[digit], VIEW) for digit in votes] for one, votes in zip(items, said, strict=True)]
    metrics = summarise(items, scores, OURS)["metrics"]
    assert metrics["majority@3"]["value"] == 0.5
    assert metrics["accuracy"]["value"] == pytest.approx((2 / 3 + 0) / 2, rel=0, abs=1e-12)


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(*[st.sampled_from("12?")] * 2), min_size=1))
def test_the_totals_are_shares_and_keep_their_order(answers):
    totals = figures(answers, {name: {"question_id": name, "category": name} for name in answers})
    assert all(0 <= value <= 1 for value in totals.values())
    assert totals["both_orders_correct"] <= totals["consistency"]
    assert totals["acc_plus_both_orders"] == pytest.approx(totals["both_orders_correct"], rel=0, abs=1e-12)
    assert totals["acc_plus"] == pytest.approx(totals["macro_accuracy"], rel=0, abs=1e-12)


# --- miniatures of the data sets


def read(name, path, **options):
    benchmark = PREFERENCES[name]
    return [one for whole in read_items(benchmark, str(path), **options) for one in benchmark.expand(whole)]


def test_vl_rewardbench_from_its_rows_and_from_the_converted_file(tmp_path):
    (tmp_path / "1.png").write_bytes(png())
    row = {"query": "What?", "response": ["A", "B"], "image": "1.png", "human_ranking": [1, 0]}
    path = lines(tmp_path / "vl.jsonl", {"id": "RLAIF-V-1", **row}, {"id": "mathverse_2", **row})
    with pytest.warns(UserWarning, match="has 2 items, the published data 1250"):
        items = read("vl_rewardbench", path, images=str(tmp_path))
    assert [one.id for one in items] == ["RLAIF-V-1/12", "RLAIF-V-1/21", "mathverse_2/12", "mathverse_2/21"]
    assert [one.answer for one in items] == ["2", "1", "2", "1"]
    assert [OURS.cells(one)["category"] for one in items] == ["hallucination"] * 2 + ["reasoning"] * 2
    converted = convert(path, loader="vl_rewardbench", out=str(tmp_path / "out.jsonl"))
    with pytest.warns(UserWarning, match="1250"):
        assert read("vl_rewardbench", converted.path, source="vlm_r1", images=str(tmp_path)) == items


def test_multimodal_rewardbench_from_its_array(tmp_path):
    (tmp_path / "1.png").write_bytes(png())
    row = {"ID": "pairs_1", "Text": "What?", "Image": "1.png", "Output1": "A", "Output2": "B", "Better": "Output1"}
    (tmp_path / "all_data.json").write_text(json.dumps([{**row, "Category": "safety"}]))
    first, second = read("multimodal_rewardbench", tmp_path / "all_data.json", images=str(tmp_path))
    protocol = PREFERENCES["multimodal_rewardbench"].protocols["official"]
    assert protocol.score(first, "[[A]]", VIEW).values["accuracy"] == 1.0
    assert protocol.score(second, "[[A]]", VIEW).values["accuracy"] == 0.0
    assert protocol.cells(first) == {"category": "safety/bias"}


def test_mm_rlhf_rewardbench_has_acc_plus_over_its_ids(tmp_path):
    (tmp_path / "mcq").mkdir()
    (tmp_path / "mcq" / "7.png").write_bytes(png())
    row = {"id": "7", "image": "mcq/7.png", "prompt": "Which?", "chosen": "B", "rejected": "A"}
    path = lines(tmp_path / "mm.jsonl", row, {**row, "rejected": "C"}, {**row, "id": "8"})
    with pytest.warns(UserWarning, match="145"):
        items = read("mm_rlhf_rewardbench", path, images=str(tmp_path))
    assert [one.id for one in items][:4] == ["7-0/12", "7-0/21", "7-1/12", "7-1/21"]
    said = "122212"  # the pair 7-1 is wrong in its first order
    scores = [[OURS.score(one, SAYS[digit], VIEW)] for one, digit in zip(items, said, strict=True)]
    totals = PREFERENCES["mm_rlhf_rewardbench"].protocols["vlm_entropy"].totals(items, scores)
    assert (totals["acc_plus"], totals["acc_plus_both_orders"]) == (0.75, 0.5)


def test_our_pairs_from_the_synthetic_task_and_from_plain_lines(tmp_path):
    _, held_out = make_pairs(tmp_path / "task", rows=4, seed=0, held_out=3)
    items = read("pairs", held_out, images=str(tmp_path / "task" / "images"))
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    assert [one.id for one in items] == ["0/12", "0/21", "1/12", "1/21", "2/12", "2/21"]
    plain = PREFERENCES["pairs"].protocols["plain"]
    assert [f"<image>{ask(plain, one)}" for one in items[::2]] == [row["conversations"][0]["value"] for row in rows]
    path = lines(tmp_path / "pairs.jsonl", {"question": "Q?", "response_1": "a", "response_2": "b", "label": 2})
    assert [one.answer for one in read("pairs", path, source="preference_jsonl")] == ["2", "1"]
