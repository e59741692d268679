"""Two results on the same items, and the spread over seeds: numbers by hand, refusals and warnings."""

import json
import math

import pytest
from loader_files import lines

from vlm_entropy.eval.paired import (
    PairedArguments,
    SpreadArguments,
    compare,
    item_values,
    mean_with_interval,
    paired,
    seed_table,
    spread,
)
from vlm_entropy.eval.result_files import read_result, read_scores
from vlm_entropy.eval.statistics import bootstrap_mean_interval, paired_bootstrap, wilson_interval

FIRST = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}
SECOND = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}


def write_run(folder, accuracies, *, metrics=None, totals=None, **settings):
    """A result folder as `eval run` writes it."""
    folder.mkdir()
    lines(folder / "scores.jsonl", *({"id": name, "values": {"accuracy": it}} for name, it in accuracies.items()))
    figures = {name: {"value": it, "low": 0, "high": 1, "items": 4} for name, it in (metrics or {}).items()}
    result = {"bench": "vl_rewardbench", "protocol": "official", "items_hash": "1f", "temperature": 0.0, **settings}
    (folder / "result.json").write_text(json.dumps({**result, "metrics": figures, "totals": totals or {}}))
    return str(folder)


@pytest.fixture
def two(tmp_path):
    return [write_run(tmp_path / "A", FIRST), write_run(tmp_path / "B", SECOND)]


def test_two_runs_are_compared_item_by_item(two, tmp_path, capsys):
    paired(PairedArguments(runs=two, out=str(tmp_path / "new" / "paired.json")))
    written = json.loads((tmp_path / "new" / "paired.json").read_text())
    assert {name: written[name] for name in ("bench", "metric", "runs", "n", "seed", "resamples", "warnings")} == {
        "bench": "vl_rewardbench",
        "metric": "accuracy",
        "runs": two,
        "n": 4,
        "seed": 0,
        "resamples": 10_000,
        "warnings": [],
    }
    low, high = wilson_interval(1, 4)
    assert written["first"] == {"value": 0.25, "low": low, "high": high, "interval": "wilson"}
    assert written["second"]["value"] == 0.75
    assert written["difference"]["difference"] == 0.5
    assert 0 <= written["difference"]["low"] < 0.5 < written["difference"]["high"] <= 1
    # b and c are right in B alone: p = 2 · (1/2)² = 0.5
    assert written["mcnemar"] == {"first_only": 0, "second_only": 2, "p_value": 0.5}
    printed = capsys.readouterr().out
    assert printed.startswith("vl_rewardbench: accuracy of 4 items\n")
    assert f"{two[0]}: 0.2500 [0.0456, 0.6994] (wilson)" in printed
    assert "second - first: +0.5000 [" in printed
    assert "right in one alone: 0 and 2, McNemar's p 0.5000" in printed
    assert "warning" not in printed


def test_the_items_are_paired_by_id_and_not_by_line(two, tmp_path):
    other = write_run(tmp_path / "C", dict(reversed(SECOND.items())))
    for run, out in ((two[1], "1.json"), (other, "2.json")):
        paired(PairedArguments(runs=[two[0], run], out=str(tmp_path / out)))
    in_order, reordered = (json.loads((tmp_path / out).read_text()) for out in ("1.json", "2.json"))
    assert {**in_order, "runs": None} == {**reordered, "runs": None}


def test_values_between_0_and_1_have_a_bootstrap_interval_and_no_mcnemar():
    first, second = [0.5, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]
    compared = compare(first, second, seed=3, resamples=500)
    assert compared.first == (0.625, *bootstrap_mean_interval(first, seed=3, resamples=500), "bootstrap")
    assert compared.second.interval == "wilson"
    assert compared.difference == paired_bootstrap(first, second, seed=3, resamples=500)
    assert compared.mcnemar is None
    assert compare(second, first, seed=3, resamples=500).mcnemar is None
    assert mean_with_interval([0, 1, True, 1.0], seed=0, resamples=9).interval == "wilson"


def test_both_orders_of_a_pair_are_one_item():
    scores = {
        "7/12": {"accuracy": 1.0},
        "8/12": {"accuracy": 0.0},
        "7/21": {"accuracy": 0.0},
        "x/12/y": {"accuracy": 1},
    }
    assert item_values("A", scores, "accuracy", scores) == {"7": 0.5, "8": 0.0, "x/12/y": 1.0}


def test_items_that_one_run_cannot_judge_are_left_out_and_counted(tmp_path, capsys):
    runs = [write_run(tmp_path / "A", {**FIRST, "a": None}), write_run(tmp_path / "B", {**SECOND, "b": None})]
    paired(PairedArguments(runs=runs))
    printed = capsys.readouterr().out
    assert "accuracy of 2 items" in printed
    assert "warning: 2 items that cannot be judged are left out" in printed
    none = [write_run(tmp_path / name, dict.fromkeys(FIRST)) for name in "CD"]
    with pytest.raises(ValueError, match="No item has a value of 'accuracy' in both runs"):
        paired(PairedArguments(runs=none))


def test_other_settings_are_warned_of(tmp_path, capsys):
    runs = [
        write_run(tmp_path / "A", FIRST, prompts_hash="aa", max_pixels=None, seed=0, model="x"),
        write_run(tmp_path / "B", SECOND, prompts_hash="bb", max_pixels=99, seed=1, model="y", temperature=0.5),
    ]
    paired(PairedArguments(runs=runs, out=str(tmp_path / "out.json")))
    warnings = ['prompts_hash differs: "aa", "bb"', "temperature differs: 0.0, 0.5", "max_pixels differs: null, 99"]
    assert json.loads((tmp_path / "out.json").read_text())["warnings"] == warnings
    assert "".join(f"warning: {sentence}\n" for sentence in warnings) in capsys.readouterr().out


def test_results_that_cannot_be_compared_are_refused(two, tmp_path):
    other = write_run(tmp_path / "other", FIRST, bench="screenspot")
    fewer = write_run(tmp_path / "fewer", {name: FIRST[name] for name in "abd"})
    for runs, sentence in (
        (two[:1], r"paired compares two runs, got 1; `spread` takes any number"),
        ([two[0], other], r"other is a result of 'screenspot' and .*A one of 'vl_rewardbench'"),
        ([two[0], fewer], r"The item 'c' is in .*A and not in .*fewer; both must"),
        ([fewer, two[0]], r"The item 'c' is in .*A and not in .*fewer; both must"),
    ):
        with pytest.raises(ValueError, match=sentence):
            paired(PairedArguments(runs=runs))
    with pytest.raises(ValueError, match=r"A has no metric 'f1' of item 'a'; it has accuracy"):
        paired(PairedArguments(runs=two, metric="f1"))


def test_a_missing_or_broken_file_is_one_sentence(two, tmp_path):
    with pytest.raises(ValueError, match=r"result.json is missing: `python -m vlm_entropy.eval run --out nowhere"):
        read_result("nowhere")
    (tmp_path / "B" / "scores.jsonl").unlink()
    with pytest.raises(ValueError, match=r"scores.jsonl is missing: `python -m vlm_entropy.eval run --out .*B"):
        paired(PairedArguments(runs=two))
    for text, sentence in (
        ("", "scores.jsonl holds no item"),
        ("{", r"scores.jsonl:1: Expecting"),
        ('{"id": "a"}', r"scores.jsonl:1: the line is \{'id': 'a'\}; an object with an `id`"),
        ('{"id": "a", "values": {"accuracy": true}}', "scores.jsonl:1: the line is"),
        ('{"id": "a", "values": {}}', "scores.jsonl:1: the line is"),
        ('{"id": "a", "values": {"f": 1}}\n' * 2, "scores.jsonl:2: the id 'a' comes twice"),
    ):
        (tmp_path / "B" / "scores.jsonl").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_scores(two[1])
    for text, sentence in (
        ("{", "is not JSON"),
        ("[]", "has no bench and metrics"),
        ('{"bench": "x"}', "has no bench"),
    ):
        (tmp_path / "B" / "result.json").write_text(text)
        with pytest.raises(ValueError, match=f"result.json {sentence}"):
            read_result(two[1])


def test_the_spread_over_three_seeds(tmp_path, capsys):
    runs = [
        write_run(tmp_path / str(seed), FIRST, metrics={"accuracy": value}, totals={"consistency": 0.5}, seed=seed)
        for seed, value in enumerate((0.5, 0.6, 0.7))
    ]
    spread(SpreadArguments(runs=runs, out=str(tmp_path / "spread.json")))
    written = json.loads((tmp_path / "spread.json").read_text())
    assert (written["bench"], written["runs"], written["warnings"]) == ("vl_rewardbench", runs, [])
    # s = .1, s / √3 = .057735, t_2(.975) = 4.302653, half width .248414
    row = written["metrics"]["accuracy"]
    assert list(row.values()) == pytest.approx([3, 0.6, 0.1, 0.1 / math.sqrt(3), 0.351586, 0.848414], rel=0, abs=1e-6)
    assert list(row) == ["n", "mean", "std", "standard_error", "low", "high"]
    assert capsys.readouterr().out == (
        "| metric | seeds | mean | std | standard error | 95 % t interval |\n"
        "|---|---|---|---|---|---|\n"
        "| accuracy | 3 | 0.6000 | 0.1000 | 0.0577 | [0.3516, 0.8484] |\n"
        "| consistency | 3 | 0.5000 | 0.0000 | 0.0000 | [0.5000, 0.5000] |\n"
    )


def test_one_seed_has_no_spread(tmp_path, capsys):
    spread(SpreadArguments(runs=[write_run(tmp_path / "A", FIRST, metrics={"accuracy": 0.5})]))
    assert "| accuracy | 1 | 0.5000 | - | - | - |\n" in capsys.readouterr().out


def test_seeds_that_do_not_belong_together_are_refused(tmp_path, capsys):
    first = write_run(tmp_path / "A", FIRST, metrics={"accuracy": 0.5})
    other = write_run(tmp_path / "B", FIRST, metrics={"accuracy": 0.5}, bench="pairs")
    for runs, sentence in (
        ([first, f"{first}/../A"], "A folder comes twice"),
        ([first, other], "B is a result of 'pairs'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            spread(SpreadArguments(runs=runs))
    full = {"bench": "pairs", "metrics": {"accuracy": {"value": 0.5}}}
    for metrics in ({}, {"accuracy": {"value": None}}):
        with pytest.raises(ValueError, match="B has no value of 'accuracy', which A names"):
            seed_table(["A", "B"], [full, {"bench": "pairs", "metrics": metrics}])
    spread(SpreadArguments(runs=[first, write_run(tmp_path / "C", FIRST, metrics={"accuracy": 0.4}, top_p=0.2)]))
    assert "warning: top_p differs: null, 0.2\n" in capsys.readouterr().out
