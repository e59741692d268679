"""Curation by response entropy: the numbers by hand, and the command from a model to the kept rows."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data import curate
from vlm_entropy.data.__main__ import main
from vlm_entropy.data.curation import curation_report, response_entropy
from vlm_entropy.data.curation_statistics import Estimate
from vlm_entropy.data.pairs_task import make_pairs
from vlm_entropy.data.tiny import build_tiny_vlm

COST = {"prompt_tokens": 10, "response_tokens": 20, "seconds": 0.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model unsure enough that the entropies of rows differ."""
    folder = build_tiny_vlm("internvl", tmp_path_factory.mktemp("model") / "tiny", hidden_size=32)
    network = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        network.get_input_embeddings().weight *= 4
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    make_pairs(folder, rows=24, seed=0, held_out=1, noise=0.25)
    return folder


def flags(model, pairs, out, *more):
    data = ["--model", model, "--data", pairs / "train.jsonl", "--images", pairs / "images", "--out", out]
    sampling = ["--samples", 2, "--max_new_tokens", 5, "--batch_size", 8, "--task_type", "plain"]
    return ["curate", *map(str, [*data, *sampling, *more])]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_entropy_of_a_row_is_the_mean_over_its_responses_that_have_one():
    assert response_entropy([0.5, 1.5]) == 1.0
    assert response_entropy([0.5, None, math.nan, math.inf]) == 0.5
    assert response_entropy([None]) is None


def report(kept=None, is_noisy=None):
    # Twenty rows of entropy 0 to 1.9, the ten certain ones right but for row 9, the others wrong but for row 10.
    entropies = [row / 10 for row in range(20)]
    accuracies = [1.0] * 9 + [0.0, 1.0] + [0.0] * 9
    return curation_report(entropies, accuracies, is_noisy, kept, samples=1, cost=COST)


def test_the_report_bins_rows_by_entropy():
    bins = report().bins
    assert [(one.low, one.high, one.rows) for one in bins[:2]] == [(0.0, 0.1, 2), (0.2, 0.3, 2)]
    assert [one.accuracy for one in bins] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert [one.noisy for one in bins] == [None] * 10
    assert sum(report().histogram["counts"]) == 20


def test_the_report_counts_wrong_labels_among_kept_and_dropped_rows():
    noise = report(kept=list(range(10)), is_noisy=[row in (3, 12, 13, 14, 15) for row in range(20)]).noise
    # 1 of 10 kept, 4 of 10 dropped: odds ratio (4 / 6) / (1 / 9) = 6.
    assert (noise["kept_noisy"], noise["kept"], noise["dropped_noisy"], noise["dropped"]) == (1, 10, 4, 10)
    assert noise["odds_ratio"]["value"] == pytest.approx(6.0)
    assert report(kept=list(range(20)), is_noisy=[False] * 20).noise is None
    assert report(is_noisy=[False] * 20).noise is None


def test_rows_without_entropy_or_accuracy_are_counted_and_left_out():
    found = curation_report([0.1, None, 0.3], [None, 1.0, 0.0], None, None, samples=1, cost=COST)
    assert (found.rows, found.without_entropy) == (3, 1)
    assert [(one.rows, one.accuracy) for one in found.bins] == [(0, None), (1, 0.0)]
    assert found.spearman == Estimate(None, None, None)
    empty = curation_report([None], [None], None, None, samples=1, cost=COST)
    assert (empty.without_entropy, empty.bins, empty.quantiles) == (1, [], {})
    assert "1 rows without entropy" in str(empty)


def test_the_report_in_words():
    text = str(report(kept=list(range(10)), is_noisy=[row in (3, 12, 13, 14, 15) for row in range(20)]))
    assert "0.000 to   0.100  1.000 of 2, 0.0% labels wrong" in text
    assert "Spearman's rho of entropy and accuracy: -0." in text
    assert "wrong labels: 1 of 10 kept rows, 4 of 10 dropped rows" in text
    assert "cost: 10 prompt and 20 response tokens, 0.5 s" in text


def test_the_command_scores_every_row_and_keeps_the_certain_ones(model, pairs, tmp_path, capsys):
    out = tmp_path / "scored.jsonl"
    main(flags(model, pairs, out, "--keep_fraction", 0.25))
    rows, kept = lines(out), lines(tmp_path / "scored_kept.jsonl")
    source = lines(pairs / "train.jsonl")
    assert [{name: row[name] for name in source[0]} for row in rows] == source
    entropies = [row["response_entropy"] for row in rows]
    assert all(0 < value < math.log(2000) for value in entropies)
    assert len(set(entropies)) > 12
    lowest = sorted(range(24), key=lambda row: entropies[row])[:6]
    assert kept == [rows[row] for row in lowest]
    found = json.loads((tmp_path / "scored.report.json").read_text())
    assert (found["rows"], found["samples"], found["noise"]["kept"]) == (24, 2, 6)
    assert found["noise"]["kept_noisy"] + found["noise"]["dropped_noisy"] == 6
    assert found["cost"]["response_tokens"] == 24 * 2 * 5
    assert "24 rows, 2 sampled responses each" in capsys.readouterr().out


def test_the_entropy_of_a_row_is_that_of_its_responses_in_a_plain_forward(model, pairs, tmp_path):
    out = tmp_path / "scored.jsonl"
    main(flags(model, pairs, out, "--samples", 1))
    answers = {
        line["row"]: line
        for path in (tmp_path / "scored.jsonl.parts").glob("part-*")
        for batch in lines(path)
        for line in batch["lines"]
    }
    network = AutoModelForImageTextToText.from_pretrained(model)
    processor = AutoProcessor.from_pretrained(model, padding_side="left")
    row = lines(out)[3]
    image = Image.open(pairs / "images" / row["image"])
    content = [{"type": "image", "image": image}, {"type": "text", "text": row["conversations"][0]["value"][7:]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        p = network(**inputs).logits[0, -1].double().softmax(dim=-1)
    first = float(-(p * p.log()).sum())
    assert answers[3]["entropy"] == pytest.approx(row["response_entropy"])
    # One token decoded: the mean is the entropy of the first distribution.
    main(flags(model, pairs, tmp_path / "one.jsonl", "--samples", 1, "--max_new_tokens", 1))
    assert lines(tmp_path / "one.jsonl")[3]["response_entropy"] == pytest.approx(first, abs=2e-5)


def test_a_run_killed_in_the_middle_goes_on_and_writes_the_same_files(model, pairs, tmp_path):
    main(flags(model, pairs, tmp_path / "whole.jsonl", "--keep_fraction", 0.5))
    out = tmp_path / "killed.jsonl"
    main(flags(model, pairs, out, "--keep_fraction", 0.5))
    part = tmp_path / "killed.jsonl.parts" / "part-0.jsonl"
    finished = part.read_text().splitlines(keepends=True)
    assert len(finished) == 6
    part.write_text("".join(finished[:2]) + finished[2][:40])
    for path in (out, tmp_path / "killed_kept.jsonl"):
        path.unlink()
    main(flags(model, pairs, out, "--keep_fraction", 0.5))
    assert part.read_text().splitlines()[:2] == [line.rstrip("\n") for line in finished[:2]]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "killed_kept.jsonl").read_bytes() == (tmp_path / "whole_kept.jsonl").read_bytes()


def test_a_run_ended_by_sigkill_goes_on_from_its_last_batch(model, pairs, tmp_path):
    more = ["--batch_size", 2, "--max_new_tokens", 40]
    main(flags(model, pairs, tmp_path / "whole.jsonl", *more))
    command = [sys.executable, "-m", "vlm_entropy.data", *flags(model, pairs, tmp_path / "killed.jsonl", *more)]
    part = tmp_path / "killed.jsonl.parts" / "part-0.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (part.is_file() and part.read_bytes().count(b"\n") >= 3):
            time.sleep(0.01)
        process.kill()
    finished = part.read_bytes().count(b"\n")
    assert 3 <= finished < 24
    assert not (tmp_path / "killed.jsonl").exists()
    before = part.read_text().splitlines()[:finished]
    main(flags(model, pairs, tmp_path / "killed.jsonl", *more))
    assert part.read_text().splitlines()[:finished] == before
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_processes_write_what_one_does(model, pairs, tmp_path):
    main(flags(model, pairs, tmp_path / "one.jsonl", "--keep_fraction", 0.5))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [
        *launcher,
        "-m",
        "vlm_entropy.data",
        *flags(model, pairs, tmp_path / "two.jsonl", "--keep_fraction", 0.5),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [lines(path) for path in sorted((tmp_path / "two.jsonl.parts").glob("part-*.jsonl"))]
    assert [[batch["batch"] for batch in part] for part in parts] == [[0, 2, 4], [1, 3, 5]]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert (tmp_path / "two_kept.jsonl").read_bytes() == (tmp_path / "one_kept.jsonl").read_bytes()
    assert done.stdout.count("wrote") == 2


def test_batches_of_the_same_prompts_are_drawn_apart(model, pairs, tmp_path):
    (tmp_path / "same.jsonl").write_text((pairs / "train.jsonl").read_text().splitlines(keepends=True)[0] * 4)
    main(flags(model, pairs, tmp_path / "out.jsonl", "--data", tmp_path / "same.jsonl", "--batch_size", 2))
    drawn = [row["response_entropy"] for row in lines(tmp_path / "out.jsonl")]
    assert len(set(drawn)) > 1


def test_cutting_anew_asks_no_model(model, pairs, tmp_path, monkeypatch):
    main(flags(model, pairs, tmp_path / "scored.jsonl"))
    monkeypatch.setattr("vlm_entropy.data.generation.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    main(flags(model, pairs, tmp_path / "scored.jsonl", "--max_entropy", 100, "--kept", tmp_path / "all.jsonl"))
    assert len(lines(tmp_path / "all.jsonl")) == 24


def test_empty_responses_have_no_entropy_and_go_first(model, pairs, tmp_path, monkeypatch):
    plain = curate.sample_responses

    def blank_first(*args):
        answers, seconds = plain(*args)
        for line in answers[0]:
            line["response"] = "  "
        return answers, seconds

    monkeypatch.setattr(curate, "sample_responses", blank_first)
    main(flags(model, pairs, tmp_path / "scored.jsonl", "--keep_fraction", 0.96))
    assert lines(tmp_path / "scored.jsonl")[0]["response_entropy"] is None
    kept = lines(tmp_path / "scored_kept.jsonl")
    assert len(kept) == 23
    assert 0 not in {row["id"] for row in kept}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--keep_fraction", "1.5"], r"keep_fraction must lie in \(0, 1\], got 1.5"),
        (["--keep_fraction", "0.5", "--max_entropy", "1"], "Give keep_fraction or max_entropy, one of them"),
        (["--reward", "format"], "--reward 'format' judges no answer by itself"),
        (["--out", "scored.txt"], "a file ending in .jsonl is needed"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--model", "nowhere/at/all"], "--model 'nowhere/at/all' is no vision-language model"),
    ],
)
def test_bad_input_is_one_sentence(model, pairs, tmp_path, more, complaint):
    with pytest.raises(SystemExit, match=complaint):
        main(flags(model, pairs, tmp_path / "scored.jsonl", *more))


def test_scored_rows_and_other_settings_are_refused(model, pairs, tmp_path):
    main(flags(model, pairs, tmp_path / "scored.jsonl"))
    with pytest.raises(SystemExit, match="has a column response_entropy already"):
        main(flags(model, pairs, tmp_path / "again.jsonl", "--data", tmp_path / "scored.jsonl"))
    with pytest.raises(SystemExit, match="holds work with seed 0, and this run has 1"):
        main(flags(model, pairs, tmp_path / "scored.jsonl", "--seed", 1))
