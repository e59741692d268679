"""`python -m vlm_entropy.data`: its commands from flags to files, and what they refuse."""

import json

import pytest

from vlm_entropy.data.__main__ import main
from vlm_entropy.data.rows import read_rows


def run(line, capsys):
    main(line.split())
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("shapes --rows 4", 4),
        ("gui --rows 6 --elements 3", 6),
        ("classes --shots 2 --classes 3", 6),
        ("geometry --rows 4", 4),
        ("pairs --rows 4 --over geometry --noise 0.5", 4),
    ],
)
def test_every_task_is_written_as_rows_that_can_be_read(tmp_path, capsys, task, rows):
    printed = run(f"make --task {task} --out {tmp_path / 'task'} --held_out 3", capsys)
    read, _ = read_rows(str(tmp_path / "task" / "train.jsonl"), str(tmp_path / "task" / "images"))
    assert len(read) == rows
    assert f"train.jsonl: {rows} rows" in printed
    assert "heldout.jsonl: 3 rows" in printed


def test_noise_makes_a_share_of_the_answers_wrong(tmp_path, capsys):
    run(f"make --task shapes --rows 8 --out {tmp_path / 'task'}", capsys)
    files = f"--data {tmp_path / 'task' / 'train.jsonl'} --out {tmp_path / 'noisy.jsonl'}"
    printed = run(f"noise {files} --kind box --ratio 0.25 --image_folder {tmp_path / 'task' / 'images'}", capsys)
    noisy = [json.loads(line) for line in (tmp_path / "noisy.jsonl").read_text().splitlines()]
    assert [row["is_noisy"] for row in noisy].count(True) == 2
    assert printed.startswith("2 of 8 labels (25.0%) of kind box are wrong now")


def test_the_check_says_whether_training_may_start(tmp_path, tiny_model, capsys):
    run(f"make --task shapes --rows 8 --out {tmp_path / 'task'}", capsys)
    files = f"--data {tmp_path / 'task' / 'train.jsonl'} --images {tmp_path / 'task' / 'images'}"
    options = f"--model {tiny_model} --task_type plain --max_completion_length 20"
    assert "Training may start." in run(f"check {files} {options}", capsys)
    (tmp_path / "task" / "images" / "train-000003.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        main(f"check {files} {options}".split())
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "train.jsonl:4" in printed
    assert "Training may not start: " in printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mak", "unknown command 'mak'; the commands are make, build, convert, check, noise"),
        ("make --task gui --rows 4 --grid 8", "--grid is no flag of the task 'gui'"),
        ("make --task gui", "--rows is missing"),
        ("noise --data a.jsonl --out b.jsonl --kind box --ratio 0.5", "The data file 'a.jsonl' does not exist"),
    ],
)
def test_a_bad_line_ends_in_one_sentence(tmp_path, line, message):
    with pytest.raises(SystemExit, match=message):
        main([*line.split(), *(["--out", str(tmp_path / "out")] if line.startswith("make") else [])])
