"""Evaluation: the summary by hand, a run of a real checkpoint, and the report over runs."""

import json

import pytest

from vlm_entropy.eval import wilson_interval
from vlm_entropy.eval.__main__ import main
from vlm_entropy.eval.report import entropy_at, switch_step
from vlm_entropy.eval.runner import summarise


def test_the_wilson_interval_by_hand():
    # p = 0.5, n = 4, z = 1.959964: centre (0.5 + z²/8) / (1 + z²/4) = 0.5, half width
    # z √(0.25/4 + z²/64) / (1 + z²/4) = 1.959964 · √(0.0625 + 0.060023) / 1.960365 = 0.349961.
    assert wilson_interval(2, 4) == pytest.approx((0.150039, 0.849961), abs=1e-6)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0


def test_the_summary_counts_every_row_once():
    box = "<answer>[0, 0, 2, 2]</answer>"
    responses = [box, box, box, "<answer>left</answer>", "no idea", box]
    summary = summarise(responses, [1.0, 0.5, 0.75, 0.0, 0.0, None])
    assert summary["rows"] == 5
    assert summary["unjudged_rows"] == 1
    assert summary["accuracy@0.5"] == 2 / 5  # 0.5 is not above 0.5
    assert summary["mean_iou"] == 2.25 / 5
    assert (summary["no_answer"], summary["malformed"]) == (1 / 5, 1 / 5)


def test_rows_that_cannot_be_judged_make_no_result():
    with pytest.raises(ValueError, match="No row can be judged"):
        summarise(["a"], [None])


def test_a_checkpoint_is_evaluated_and_every_answer_kept(tiny_model, shapes, tmp_path, capsys):
    flags = [
        "--model",
        tiny_model,
        "--data_file_paths",
        shapes / "heldout.jsonl",
        "--image_folders",
        shapes / "images",
    ]
    more = ["--out", tmp_path / "result", "--task_type", "plain", "--max_new_tokens", 6, "--batch_size", 3]
    main(["run", *map(str, [*flags, *more])])
    predictions = [json.loads(line) for line in (tmp_path / "result" / "predictions.jsonl").read_text().splitlines()]
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert [line["source"].rpartition(":")[2] for line in predictions] == [str(row) for row in range(1, 9)]
    assert all(isinstance(line["response"], str) and line["iou"] == 0.0 for line in predictions)
    assert (result["rows"], result["accuracy@0.5"], result["no_answer"]) == (8, 0.0, 1.0)
    assert (result["temperature"], result["max_new_tokens"]) == (0.0, 6)
    assert "accuracy@0.5 0.000" in capsys.readouterr().out


def test_sampled_answers_follow_the_seed(tiny_model, shapes, tmp_path):
    def answers(seed):
        out = tmp_path / str(seed)
        flags = ["--model", tiny_model, "--data_file_paths", shapes / "heldout.jsonl", "--image_folders"]
        more = [shapes / "images", "--out", out, "--max_new_tokens", 6, "--temperature", 1, "--seed", seed]
        main(["run", *map(str, [*flags, *more])])
        return [json.loads(line)["response"] for line in (out / "predictions.jsonl").read_text().splitlines()]

    assert answers(1) == answers(1) != answers(2)


def test_batching_and_padding_do_not_change_the_answers(tiny_model, shapes, tmp_path):
    def answers(batch_size):
        out = tmp_path / str(batch_size)
        flags = ["--model", tiny_model, "--data_file_paths", shapes / "heldout.jsonl", "--image_folders"]
        more = [shapes / "images", "--out", out, "--max_new_tokens", 6, "--batch_size", batch_size]
        main(["run", *map(str, [*flags, *more])])
        return [json.loads(line)["response"] for line in (out / "predictions.jsonl").read_text().splitlines()]

    assert answers(1) == answers(8)


def write_run(folder, entropies, *, stages=None):
    folder.mkdir()
    result = {"accuracy@0.5": 0.5, "accuracy@0.5_interval": [0.4, 0.6], "mean_iou": 0.45}
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "metrics.jsonl").open("w") as file:
        for step, entropy in enumerate(entropies, start=1):
            stage = {"two_stage/stage": stages[step - 1], "two_stage/coefficient": 0.1} if stages else {}
            file.write(json.dumps({"step": step, "reward": 0.1 * step, "entropy": entropy, **stage}) + "\n")
        file.write(json.dumps({"step": len(entropies), "train_runtime": 1.0}) + "\n")


def test_the_report_has_a_row_per_run_and_reads_entropy_where_the_stage_switches(tmp_path, capsys):
    write_run(tmp_path / "grpo", [1.0] * 5 + [0.5] * 5)
    write_run(tmp_path / "two_stage", [1.0] * 5 + [2.0] * 5 + [0.25] * 5, stages=[1] * 10 + [2] * 5)
    main(["report", "--runs", str(tmp_path / "grpo"), str(tmp_path / "two_stage"), "--out", str(tmp_path / "report")])
    table = (tmp_path / "report" / "report.md").read_text()
    assert table.splitlines()[0] == "| run | accuracy@0.5 [95 %] | mean IoU | entropy: start | at step 10 | end |"
    assert table.splitlines()[2:] == [
        "| grpo | 0.500 [0.400, 0.600] | 0.450 | 1.000 | 0.500 | 0.500 |",
        "| two_stage | 0.500 [0.400, 0.600] | 0.450 | 1.000 | 2.000 | 0.250 |",
    ]
    assert table in capsys.readouterr().out
    assert (tmp_path / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_entropy_is_averaged_over_the_five_lines_that_end_at_a_step():
    lines = [{"step": step, "entropy": float(step), "reward": 0.0} for step in range(1, 21)]
    assert entropy_at(lines, 0) == 3.0  # steps 1 to 5
    assert entropy_at(lines, 10) == 8.0  # steps 6 to 10
    assert entropy_at(lines, 20) == 18.0
    assert entropy_at(lines, None) is None
    assert switch_step({"grpo": lines}) is None


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="temperature must be a finite number >= 0"):
        main(["run", "--model", "x", "--data_file_paths", "x", "--out", "x", "--temperature", "-1"])
    with pytest.raises(SystemExit, match="unknown command 'score'; the commands are run, report"):
        main(["score"])
    with pytest.raises(SystemExit, match=r"result.json is missing: evaluate the run first"):
        main(["report", "--runs", str(tmp_path), "--out", str(tmp_path)])
