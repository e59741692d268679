"""The table of a comparison, worked by hand: means, spreads, paired intervals over items or seeds, and costs."""

import json
import math
from pathlib import Path

import pytest

from vlm_entropy.eval.comparison import BASE, Cell, Cost, markdown, paired_interval, read_cost, read_outcome, table
from vlm_entropy.eval.plan import Plan


def plan(tmp_path, **changes):
    values = {"methods": {"grpo": {}, "a": {}}, "evaluate": {"heldout": {"data": "d"}}, "seeds": [0]}
    return Plan(out=str(tmp_path), model="m", data="d", **{**values, **changes})


def written(folder, values, *, totals=None):
    """A folder of a run as `eval run` leaves it, with the metric `accuracy` of each item."""
    folder.mkdir(parents=True, exist_ok=True)
    judged = [value for value in values if value is not None]
    mean = sum(judged) / len(judged) if judged else None
    result = {"bench": "rows", "metrics": {"accuracy": {"value": mean}}, "totals": totals or {}}
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"id": str(item), "values": {"accuracy": value}} for item, value in enumerate(values)]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def outcome(tmp_path, of_plan, method, values, *, noise=0.5, seed=0, logs=(), **kwargs):
    cell = Cell(method, noise, seed)
    written(tmp_path / cell.name, values, **kwargs)
    (tmp_path / cell.name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logs))
    return read_outcome(cell, tmp_path / cell.name, of_plan)


def row_of(rows, method, metric="accuracy"):
    [row] = [row for row in rows if (row["method"], row["metric"]) == (method, metric)]
    return row


def test_costs_are_read_from_the_log():
    logs = [
        {"step": 2, "step_time": 3.0, "num_tokens": 100.0, "memory/peak_gib": 1.0},
        {"step": 3, "step_time": 5.0, "num_tokens": 160.0, "memory/peak_gib": 1.5},
        {"step": 3, "train_runtime": 99.0},
    ]
    # 2 steps of 3 s and one of 5 s.
    assert read_cost(logs) == Cost(160, 11.0, int(1.5 * 2**30))
    assert read_cost([{"step": 1, "loss": 0.5}]) == Cost(None, None, None)


def test_one_seed_is_compared_over_items(tmp_path):
    of_plan = plan(tmp_path)
    first = outcome(tmp_path, of_plan, "grpo", [0.0] * 50 + [1.0] * 50)
    second = outcome(tmp_path, of_plan, "a", [0.0] * 25 + [1.0] * 75)
    found = paired_interval([first], [second], "accuracy", of_plan)
    # A quarter of 100 items differ, all by +1: 0.25 ± 1.96 · sqrt(0.25 · 0.75 / 100) = 0.25 ± 0.085.
    assert found.difference == 0.25
    assert (found.low, found.high) == (pytest.approx(0.165, abs=0.01), pytest.approx(0.335, abs=0.01))
    assert (found.over, found.is_shown) == ("items", True)
    mirrored = paired_interval([second], [first], "accuracy", of_plan)
    assert mirrored.difference == -0.25


def test_several_seeds_are_compared_over_seeds(tmp_path):
    of_plan = plan(tmp_path, seeds=[0, 1])
    shares = {"grpo": [2, 4], "a": [5, 5]}
    outcomes = [
        outcome(tmp_path, of_plan, method, [1.0] * right + [0.0] * (10 - right), seed=seed)
        for method, of_seeds in shares.items()
        for seed, right in enumerate(of_seeds)
    ]
    row = row_of(table(outcomes, of_plan), "a")
    # Differences 0.3 and 0.1: mean 0.2, s = 0.1414, t_1 = 12.706, half = 12.706 · 0.1414 / sqrt(2) = 1.2706.
    assert row["paired_difference"] == pytest.approx(0.2)
    assert (row["low"], row["high"]) == (pytest.approx(-1.07062, abs=1e-5), pytest.approx(1.47062, abs=1e-5))
    assert (row["over"], row["shown"], row["seeds"]) == ("seeds", False, 2)
    baseline = row_of(table(outcomes, of_plan), "grpo")
    assert baseline["mean"] == pytest.approx(0.3)
    assert baseline["spread"] == pytest.approx(math.sqrt(0.02))  # (0.1² + 0.1²) / 1
    assert baseline["paired_difference"] is None


def test_a_seed_without_its_partner_counts_in_the_mean_alone(tmp_path):
    of_plan = plan(tmp_path, seeds=[0, 1])
    outcomes = [
        outcome(tmp_path, of_plan, "grpo", [0.0, 1.0]),
        outcome(tmp_path, of_plan, "a", [1.0, 1.0]),
        outcome(tmp_path, of_plan, "a", [0.0, 0.0], seed=1),
    ]
    row = row_of(table(outcomes, of_plan), "a")
    assert (row["mean"], row["paired_difference"], row["over"]) == (0.5, 0.5, "items")


def test_extra_costs_are_means_over_pairs_and_unknown_where_one_is(tmp_path):
    of_plan = plan(tmp_path, methods={"grpo": {}, "a": {}, "b": {}})

    def logs(seconds, tokens):
        return [{"step": 1, "step_time": seconds, "num_tokens": tokens, "entropy": 1.0}]

    outcomes = [
        outcome(tmp_path, of_plan, "grpo", [1.0, 0.0], logs=logs(10.0, 100)),
        outcome(tmp_path, of_plan, "a", [1.0, 0.0], logs=logs(12.5, 150)),
        outcome(tmp_path, of_plan, "b", [1.0, 0.0]),
        outcome(tmp_path, of_plan, "grpo", [1.0, 0.0], seed=1, logs=logs(10.0, 100)),
        outcome(tmp_path, of_plan, "b", [1.0, 0.0], seed=1, logs=logs(11.0, 120)),  # of two seeds one is not known
    ]
    rows = table(outcomes, of_plan)
    assert (row_of(rows, "a")["extra_tokens"], row_of(rows, "a")["extra_seconds"]) == (50, 2.5)
    assert (row_of(rows, "b")["extra_tokens"], row_of(rows, "b")["extra_seconds"]) == (None, None)
    assert row_of(rows, "a", "entropy")["mean"] == 1.0


def test_noise_levels_are_apart_and_the_base_model_stands_in_each(tmp_path):
    of_plan = plan(tmp_path, noise={"ratios": [0.0, 1.0]})
    outcomes = [
        outcome(tmp_path, of_plan, BASE, [0.0, 0.0, 1.0, 0.0], noise=0.0),
        outcome(tmp_path, of_plan, "grpo", [1.0, 1.0, 1.0, 0.0], noise=0.0),
        outcome(tmp_path, of_plan, "grpo", [0.0, 0.0, 0.0, 0.0], noise=1.0),
    ]
    rows = table(outcomes, of_plan)
    base = [row for row in rows if (row["method"], row["metric"]) == (BASE, "accuracy")]
    assert [(row["noise"], row["mean"], row["paired_difference"]) for row in base] == [
        (0, 0.25, -0.5),
        (1, 0.25, 0.25),
    ]
    text = markdown(of_plan, rows, ["accuracy"])
    assert text.index("Wrong labels: 0%") < text.index("Wrong labels: 100%")
    assert "| base | 0.250 (-0.500 [-1.000, +0.000], not shown) |" in text


def test_several_evaluations_have_names_of_their_own(tmp_path):
    of_plan = plan(tmp_path, evaluate={"near": {"data": "d"}, "far": {"data": "e"}})
    for method, far in (("grpo", [0.0, 0.0, 0.0]), ("a", [1.0, 1.0, 0.0])):
        written(tmp_path / Cell(method, 0.5, 0).name / "far", far)
    outcomes = [outcome(tmp_path, of_plan, method, [1.0, 0.0]) for method in ("grpo", "a")]
    rows = table(outcomes, of_plan)
    assert row_of(rows, "a", "near/accuracy")["paired_difference"] == 0.0
    assert row_of(rows, "a", "far/accuracy")["paired_difference"] == pytest.approx(2 / 3)


def test_a_figure_of_the_whole_set_has_no_interval_over_items(tmp_path):
    of_plan = plan(tmp_path)
    outcomes = [
        outcome(tmp_path, of_plan, method, [1.0, 0.0], totals={"mAP": value})
        for method, value in (("grpo", 0.25), ("a", 0.75))
    ]
    row = row_of(table(outcomes, of_plan), "a", "mAP")
    assert (row["paired_difference"], row["low"], row["over"], row["shown"]) == (0.5, None, None, None)
    assert "0.750 (+0.500)" in markdown(of_plan, [row], ["mAP"])


def test_items_that_cannot_be_judged_are_left_out_of_the_pairs(tmp_path):
    of_plan = plan(tmp_path)
    first = outcome(tmp_path, of_plan, "grpo", [0.0, None, 0.0])
    second = outcome(tmp_path, of_plan, "a", [1.0, 1.0, 1.0])
    assert paired_interval([first], [second], "accuracy", of_plan)[:3] == (1.0, 1.0, 1.0)


def test_the_json_holds_what_the_report_reads(tmp_path):
    from vlm_entropy.eval.comparison import as_json

    of_plan = plan(tmp_path)
    outcomes = [outcome(tmp_path, of_plan, method, [1.0, 0.0]) for method in ("grpo", "a")]
    content = json.loads(json.dumps(as_json(of_plan, outcomes, table(outcomes, of_plan))))
    assert content["plan"]["methods"] == {"grpo": {}, "a": {}}
    assert set(content["cells"][0]) == {
        *("method", "noise", "seed", "run", "metrics", "tokens", "seconds", "peak_memory_bytes")
    }
    assert Path(content["cells"][1]["run"]).name == "a-noise0.5-seed0"
    needed = {*("method", "noise", "metric", "mean", "spread", "paired_difference", "low", "high")}
    assert needed | {"extra_tokens", "extra_seconds", "peak_memory_bytes"} <= set(content["table"][0])
