"""The fidelity filter: a trace stays if its verdict is the label."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_files import lines, turns
from task_files import read

from vlm_entropy.data.__main__ import main
from vlm_entropy.data.pairs_task import make_pairs
from vlm_entropy.data.traces import faithful_trace, keep_faithful

SAYS_1, SAYS_2 = "<think>a</think><answer>1</answer>", "<think>b</think><answer> [[2]] </answer>"
NO_VERDICT = "<think>Both are fine.</think><answer>tie</answer>"


def pair(label="1", **columns):
    return {"id": 0, "conversations": turns("Q?", label), "responses": ["a", "b"], **columns}


@pytest.mark.parametrize(
    ("attempts", "label", "result"),
    [
        ([SAYS_1], "1", (SAYS_1, None)),
        ([SAYS_2], "2", (SAYS_2, None)),
        ([SAYS_2], "1", (None, "wrong verdict")),
        ([NO_VERDICT], "1", (None, "no verdict")),
        (["Response 1 is better."], "1", (None, "no verdict")),  # no <answer>
        ([], "1", (None, "no trace")),
        ([SAYS_2, NO_VERDICT, SAYS_1, SAYS_1 + " "], "1", (SAYS_1, None)),
        ([NO_VERDICT, SAYS_2], "1", (None, "wrong verdict")),
        (["<answer>1</answer> quoted</think><answer>2</answer>"], "1", (None, "wrong verdict")),
    ],
)
def test_the_first_attempt_with_the_verdict_of_the_label_is_kept(attempts, label, result):
    assert faithful_trace(attempts, label) == result


@given(st.lists(st.one_of(st.text(), st.sampled_from([SAYS_1, SAYS_2, NO_VERDICT]))), st.sampled_from("12"))
def test_every_list_of_attempts_gives_one_of_them_or_one_reason(attempts, label):
    trace, reason = faithful_trace(attempts, label)
    assert (trace is None) != (reason is None)
    assert trace is None or trace in attempts


def test_the_kept_row_has_one_text_in_place_of_the_attempts():
    assert keep_faithful(pair(attempts=[None, "", SAYS_2, SAYS_1], note=3), "attempts") == (
        {"id": 0, "conversations": turns("Q?", "1"), "responses": ["a", "b"], "note": 3, "trace": SAYS_1},
        None,
    )


def test_the_command_keeps_the_order_and_counts_what_it_drops(tmp_path, capsys):
    rows = [pair(trace=SAYS_1, id=1), pair(id=2), pair(trace=SAYS_2, id=3), pair("2", trace=[SAYS_2], id=4)]
    rows += [pair(trace=" ", id=5), pair(trace=NO_VERDICT, id=6), pair(trace=SAYS_2, id=7)]
    data = lines(tmp_path / "pairs.jsonl", *rows)
    main(["traces", "--data", data, "--column", "trace", "--out", str(tmp_path / "cold_start.jsonl")])
    assert [(row["id"], row["trace"]) for row in read(tmp_path / "cold_start.jsonl")] == [(1, SAYS_1), (4, SAYS_2)]
    assert json.loads((tmp_path / "cold_start.report.json").read_text()) == {
        "data": data,
        "column": "trace",
        "rows": 7,
        "kept": 2,
        "dropped": {"no trace": 2, "no verdict": 1, "wrong verdict": 2},
    }
    printed = capsys.readouterr().out
    assert "kept 2 of 7 rows; dropped: no trace 2, no verdict 1, wrong verdict 2" in printed


def test_the_traces_of_the_synthetic_pairs_are_all_kept(tmp_path):
    train, _ = make_pairs(tmp_path / "task", rows=6, seed=0, noise=0.5)
    main(["traces", "--data", str(train), "--column", "trace", "--out", str(tmp_path / "kept.jsonl")])
    assert read(tmp_path / "kept.jsonl") == read(train)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (pair(trace=7), r"pairs.jsonl:1: the trace is 7; a text, or a list of texts, is needed"),
        (pair("tie", trace=SAYS_1), "pairs.jsonl:1: the label is 'tie'; 1 or 2 is needed"),
        (
            pair(trace=SAYS_2),
            "No trace in column 'trace' of .* agrees with its label: no trace 0, no verdict 0, wrong",
        ),
        ({"trace": SAYS_1}, "pairs.jsonl:1: conversations is None"),
    ],
)
def test_a_file_that_cannot_be_filtered_is_named_and_nothing_is_written(tmp_path, row, sentence):
    data = lines(tmp_path / "pairs.jsonl", row)
    with pytest.raises(SystemExit, match=sentence):
        main(["traces", "--data", data, "--column", "trace", "--out", str(tmp_path / "out.jsonl")])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_two_columns_that_may_be_the_teachers_are_refused():
    with pytest.raises(ValueError, match="there is a column trace beside 'attempts'"):
        keep_faithful(pair(trace=SAYS_1, attempts=[SAYS_1]), "attempts")
