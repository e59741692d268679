"""Work in batches: done once, found again after a kill, refused under other settings."""

import json

import pytest

from vlm_entropy.data.resumable import claim, finish_batches, read_batches


def squares(numbers):
    for number in numbers:
        yield number, [{"square": number * number}]


def failing_at(stop):
    def work(numbers):
        for number, lines in squares(numbers):
            if number == stop:
                raise RuntimeError("killed")
            yield number, lines

    return work


def test_every_batch_is_done_and_the_lines_come_in_order(tmp_path):
    finished = finish_batches(tmp_path, 4, squares)
    assert finished.lines == [{"square": 0}, {"square": 1}, {"square": 4}, {"square": 9}]
    assert finished.seconds >= 0


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        finish_batches(tmp_path, 4, failing_at(2))
    assert sorted(read_batches(tmp_path)) == [0, 1]
    asked = []

    def work(numbers):
        asked.extend(numbers)
        return squares(numbers)

    finished = finish_batches(tmp_path, 4, work)
    assert asked == [2, 3]
    assert finished.lines == [{"square": 0}, {"square": 1}, {"square": 4}, {"square": 9}]


def test_a_line_that_a_crash_cut_off_counts_for_nothing_and_is_overwritten(tmp_path):
    finish_batches(tmp_path, 2, squares)
    part = tmp_path / "part-0.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole[:-5])
    assert sorted(read_batches(tmp_path)) == [0]
    assert finish_batches(tmp_path, 2, squares).lines == [{"square": 0}, {"square": 1}]
    assert [json.loads(line)["batch"] for line in part.read_text().splitlines()] == [0, 1]


def test_batches_of_another_process_are_not_done_again(tmp_path):
    (tmp_path / "part-1.jsonl").write_text('{"batch": 1, "seconds": 2.5, "lines": [{"square": 1}]}\n')
    finished = finish_batches(tmp_path, 2, failing_at(1))
    assert finished.lines == [{"square": 0}, {"square": 1}]
    assert finished.seconds >= 2.5


def test_the_settings_of_a_folder_stay_what_they_were(tmp_path):
    claim(tmp_path / "work", {"seed": 1, "shape": (2, 3)})
    claim(tmp_path / "work", {"seed": 1, "shape": (2, 3)})
    with pytest.raises(ValueError, match="holds work with seed 1, and this run has 2"):
        claim(tmp_path / "work", {"seed": 2, "shape": (2, 3)})
    with pytest.raises(ValueError, match="holds work with shape"):
        claim(tmp_path / "work", {"seed": 1})
