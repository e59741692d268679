"""Two processes compute what one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_process_step.py")


TWO_STAGE = {"lambda_max": 0.5, "switch_step": 1}
THREE = {"entropy_reward_coef": 2.0, "label_entropy_coef": 0.5}


def step(tiny_model, shapes, out, method, options, *, processes, per_device_batch):
    out.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [tiny_model, shapes, out, method, json.dumps(options), per_device_batch]
    command = [*launcher, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "step.pt", weights_only=True)


@pytest.mark.parametrize(
    ("method", "options", "logged"),
    [
        ("two_stage", {**TWO_STAGE, "entropy_norm": "sequence"}, ["two_stage/entropy", "two_stage/stage"]),
        ("two_stage", {**TWO_STAGE, "entropy_norm": "token"}, ["two_stage/entropy", "two_stage/coefficient"]),
        ("entropy_reward+entropy_advantage+label_entropy", THREE, ["entropy_reward/bonus", "label_entropy/noisy"]),
        pytest.param("intuitor", {}, ["intuitor/self_certainty"], marks=pytest.mark.slow),
        pytest.param("entropy_minimisation", {}, ["entropy_minimisation/entropy"], marks=pytest.mark.slow),
    ],
)
def test_a_step_on_two_processes_equals_the_step_on_one(tiny_model, shapes, tmp_path, method, options, logged):
    one = step(tiny_model, shapes, tmp_path / "one", method, options, processes=1, per_device_batch=8)
    two = step(tiny_model, shapes, tmp_path / "two", method, options, processes=2, per_device_batch=4)
    # SGD with learning rate 1: the weights differ from the start by the gradient, of size 1e-2 and more; float32.
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=2e-6)
    # TRL's own "entropy" is a mean of micro-batch means, so it moves with the shuffle into micro-batches.
    for name in ("reward", *logged):
        assert two["logs"][name] == pytest.approx(one["logs"][name], rel=1e-5), name
