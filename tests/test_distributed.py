"""Two processes compute what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_process_step.py")


def step(tiny_model, shapes, out, *, norm, processes, per_device_batch):
    out.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [str(SCRIPT), str(tiny_model), str(shapes), str(out), norm, str(per_device_batch)]
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "step.pt", weights_only=True)


@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_a_step_on_two_processes_equals_the_step_on_one(tiny_model, shapes, tmp_path, norm):
    one = step(tiny_model, shapes, tmp_path / "one", norm=norm, processes=1, per_device_batch=8)
    two = step(tiny_model, shapes, tmp_path / "two", norm=norm, processes=2, per_device_batch=4)
    # SGD with learning rate 1: the weights differ from the start by the gradient, of size 1e-2 and more; float32.
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=2e-6)
    # TRL's own "entropy" is a mean of micro-batch means, so it moves with the shuffle into micro-batches.
    for name in ("reward", "two_stage/entropy", "two_stage/coefficient", "two_stage/stage"):
        assert two["logs"][name] == pytest.approx(one["logs"][name], rel=1e-5), name
