"""Pairs in a random, balanced order: the question, the label that follows the order, and the command."""

import json
import random
from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_files import lines, turns

from vlm_entropy.data import read_rows
from vlm_entropy.data.__main__ import main
from vlm_entropy.data.loaders.preferences import vl_rewardbench_record
from vlm_entropy.data.pairs import flip, ordered_row, ordered_rows, pairwise_question
from vlm_entropy.data.pairs_task import make_pairs
from vlm_entropy.rewards import REWARDS


def pair(label="2", **changes):
    row = {"id": "a", "image": "a.jpg", "conversations": turns("<image>What is it?", label)}
    return {**row, "responses": ["A cat.", "A dog."], **changes}


def label(row):
    return row["conversations"][1]["value"]


def better(row):
    return row["responses"][int(label(row)) - 1]


def test_the_question_numbers_the_responses():
    assert pairwise_question("What is it?", ["A cat.", "A dog."]) == (
        "Question: What is it?\nResponse 1: A cat.\nResponse 2: A dog.\nWhich response is better, 1 or 2?"
    )


def test_a_pair_that_changes_places_has_the_other_label_and_question():
    assert ordered_row(pair("2"), right_first=True) == {
        "id": "a",
        "image": "a.jpg",
        "conversations": turns(
            "<image>Question: What is it?\nResponse 1: A dog.\nResponse 2: A cat.\nWhich response is better, 1 or 2?",
            "1",
        ),
        "question": "What is it?",
        "responses": ["A dog.", "A cat."],
        "order": "21",
    }


def test_a_pair_that_keeps_its_places_keeps_its_label():
    row = ordered_row(pair("2"), right_first=False)
    assert (row["responses"], label(row), row["order"]) == (["A cat.", "A dog."], "2", "12")
    assert "Response 1: A cat.\nResponse 2: A dog." in row["conversations"][0]["value"]


def test_every_form_of_the_label_keeps_its_form_and_every_other_turn_stays():
    system = {"from": "system", "value": "Judge."}
    tagged = ordered_row(pair(conversations=[system, *turns("Q?", "<answer>2</answer>")]), right_first=True)
    assert tagged["conversations"][0] == system
    assert tagged["conversations"][2]["value"] == "<answer>1</answer>"
    assert label(ordered_row(pair(2), right_first=True)) == 1
    several = ordered_row(pair(conversations=turns("<image><image>Q?", "1")), right_first=True)
    assert several["conversations"][0]["value"].startswith("<image><image>Question: Q?\n")


def test_the_order_does_not_change_the_source():
    source = pair()
    before = deepcopy(source)
    ordered_row(source, right_first=True)
    assert source == before


@given(st.lists(st.sampled_from("12")), st.integers(0, 2**32))
def test_the_better_response_is_the_same_and_comes_first_in_half_of_the_rows(labels, seed):
    records = [pair(text, responses=[f"left {n}", f"right {n}"]) for n, text in enumerate(labels)]
    rows = ordered_rows(records, seed)
    assert [better(row) for row in rows] == [better(record) for record in records]
    assert sum(label(row) == "1" for row in rows) == (len(labels) + 1) // 2
    for row, record in zip(rows, records, strict=True):
        assert row["responses"] == record["responses"][:: 1 if row["order"] == "12" else -1]


def test_a_model_that_always_says_1_scores_exactly_one_half_where_the_better_response_came_first():
    rows = ordered_rows([pair("1") for _ in range(100)], seed=3)
    says_1 = ["<think>...</think><answer>1</answer>"] * 100
    scores = REWARDS["preference"](says_1, solution=[label(row) for row in rows])
    assert sum(scores) == 50


def test_the_order_follows_the_seed_and_not_the_global_generator():
    records = [pair() for _ in range(40)]
    random.seed(1)
    first = ordered_rows(records, 7)
    random.seed(2)
    assert first == ordered_rows(records, 7) != ordered_rows(records, 8)


def test_the_place_is_independent_of_the_place_in_the_source():
    rows = ordered_rows([pair("1") for _ in range(2000)], seed=0)
    firsts = [label(row) == "1" for row in rows]
    runs = sum(a != b for a, b in pairwise(firsts))
    # 1999 neighbours, each different with probability 1/2, standard deviation √1999 / 2 = 22
    assert abs(runs - 1000) < 90


@pytest.mark.parametrize("text", ["3", "tie", "A"])
def test_a_label_that_is_neither_1_nor_2_is_refused(text):
    with pytest.raises(ValueError, match=f"pair 2: the preference is {text!r}; allowed are 1 and 2"):
        ordered_rows([pair(), pair(text)], 0)
    with pytest.raises(ValueError, match=f"the preference is {text!r}"):
        flip(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trace": "<think>"}, "there is a column trace already; order the pairs first, then ask the teacher"),
        ({"order": "12"}, "there is a column order already; start from the file that convert wrote"),
        ({"responses": ["one"]}, r"responses is \['one'\]; two texts are needed"),
        ({"responses": None}, "responses is None; two texts are needed"),
        ({"conversations": turns("<image>", "1")}, "the question is ''; a text is needed"),
        ({"conversations": turns("<image>Q?", "1")[:1]}, "a question and an answer are needed"),
    ],
)
def test_a_row_that_cannot_be_ordered_is_named(changes, sentence):
    with pytest.raises(ValueError, match=f"pair 1: .*{sentence}"):
        ordered_rows([pair(**changes)], 0)


def test_the_command_writes_rows_for_training(tmp_path, capsys):
    source = {"id": "RLAIF-V-1", "query": "What is it?", "response": ["A cat.", "A dog."], "image": b"png"}
    record = {**vl_rewardbench_record({**source, "human_ranking": [0, 1]}), "image": None}
    data = lines(tmp_path / "converted.jsonl", *[record] * 4)
    main(["pairs", "--data", data, "--seed", "5", "--out", str(tmp_path / "new" / "train.jsonl")])
    rows, _ = read_rows(str(tmp_path / "new" / "train.jsonl"), "")
    assert sorted(row.answer for row in rows) == ["1", "1", "2", "2"]
    assert {row.columns["order"] for row in rows if row.answer == "2"} == {"21"}
    assert all(row.question == pairwise_question("What is it?", row.columns["responses"]) for row in rows)
    printed = capsys.readouterr().out
    assert "4 pairs, the better response first in 2, 2 pairs have changed places" in printed
    with pytest.raises(SystemExit, match=r"train.jsonl' exists; remove it or name another"):
        main(["pairs", "--data", data, "--out", str(tmp_path / "new" / "train.jsonl")])


def test_the_command_refuses_a_row_and_writes_nothing(tmp_path):
    train, _ = make_pairs(tmp_path / "task", rows=4, seed=0)
    with pytest.raises(SystemExit, match=r"train.jsonl: pair 1: there is a column trace already"):
        main(["pairs", "--data", str(train), "--out", str(tmp_path / "out.jsonl")])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(pair()) + "\n{")
    with pytest.raises(SystemExit, match=r"broken.jsonl:2: not JSON"):
        main(["pairs", "--data", str(broken), "--out", str(tmp_path / "out.jsonl")])
    with pytest.raises(SystemExit, match="There is no row in"):
        main(["pairs", "--data", lines(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    assert not (tmp_path / "out.jsonl").exists()
