"""Two processes share prompts each on its own, and together they compute what one does row by row."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_cases import CASES, run_case
from shared_two_processes import FIRST_FORWARDS, TRAININGS

SCRIPT = Path(__file__).with_name("shared_two_processes.py")


@pytest.fixture(scope="module")
def record(tiny_model, shapes, tmp_path_factory):
    """What two processes found, in one launch."""
    out = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(tiny_model), str(shapes), str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "record.pt", weights_only=True)


@pytest.mark.parametrize("name", FIRST_FORWARDS)
def test_processes_check_together_whichever_has_something_to_share(record, name):
    has_something = [len(set(prompts)) < len(prompts) for prompts in FIRST_FORWARDS[name]]
    for shares, (is_on, is_checked, difference, calls) in zip(has_something, record[name], strict=True):
        assert is_on
        assert is_checked == any(has_something)
        assert difference < 1e-6
        assert (difference > 0) == shares  # rounding shows that the forward was another one
        # of the model: two of the check, its own, and the one that it is compared with
        assert calls == (4 if any(has_something) else 2)


def test_an_error_on_one_process_ends_sharing_on_all(record):
    assert [(is_on, is_checked) for is_on, is_checked, *_ in record["an error on the second"]] == [(False, True)] * 2
    assert [difference for *_, difference, _ in record["an error on the second"]] == [0, 0]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_on_two_processes_is_that_of_one_row_by_row(record, tiny_model, shapes, tmp_path, name):
    one = run_case(CASES[name], tiny_model, shapes, tmp_path, processes=1, share_prompts="off")
    # SGD of weights of size 1 with gradients of 1e-2 and more; TRL's output layer computes in float32.
    torch.testing.assert_close(record[name]["weights"], one["weights"], rtol=0, atol=2e-6)
    assert len(set(record[name]["checksums"])) == 1
    pictures = [picture for some in record[name]["pictures"] for picture in some]
    assert len(pictures) == len(one["pictures"][0])
    for (ours, sums), (theirs, expected) in zip(sorted(pictures), sorted(one["pictures"][0]), strict=True):
        assert ours == theirs
        assert sums == pytest.approx(expected, rel=1e-6)
