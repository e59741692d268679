"""The check of a GPU, run on the CPU: its tables are whole, and it says what is wrong."""

import math
import platform
import subprocess
from pathlib import Path

import gpu_check
import gpu_numerics
import gpu_trainings
import pytest
import torch

from vlm_entropy.trainers.methods import METHODS

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so_in_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("There is a GPU.")
    done = subprocess.run(["bash", "run_scripts/gpu_check.sh"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu_check needs a CUDA GPU, and torch sees none; --cpu runs it at tiny sizes.\n"


def test_the_report_holds_every_number_and_method(tmp_path):
    faults = []
    lines = list(gpu_check.report(gpu_check.CPU, on_cpu=True, folder=tmp_path, faults=faults))
    assert faults == []
    cells = [line.strip("| ").split(" | ") for line in "\n".join(lines).splitlines() if line.startswith("| ")]
    assert lines[0].startswith(f"## CPU ({platform.machine()}), torch {torch.__version__}, transformers")
    numbers = [row for row in cells if row[-1] == "passed"]
    assert {row[1] for row in numbers} == {"float32", "bfloat16"}
    assert len(numbers) == 2 * (10 + 4 + 2) + 3
    methods = [row[0].strip("`") for row in cells if len(row) == 5 and row[-1] == "-"]
    assert methods == ["trl.GRPOTrainer", *[name for name in METHODS if name != "sft"]]
    stock, off, on = [row for row in cells if len(row) == 7 and row[3] == "-"]
    # Two completions to a prompt: the image goes through the tower once instead of twice.
    assert int(stock[5]) == int(off[5]) == 2 * int(on[5])
    assert int(stock[6]) == int(off[6]) > int(on[6])


def test_an_error_is_relative_to_the_largest_value():
    reference = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert gpu_numerics.error_of(torch.tensor([1.0, -3.0]), reference) == 0.25
    assert gpu_numerics.error_of(torch.tensor([1.0, math.nan]), reference) == math.inf


@pytest.mark.parametrize(("dtype", "fault"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_formula_that_is_off_on_the_device_fails(dtype, fault):
    def formula(x):
        return x if x.dtype == torch.float64 else x * (1 + fault)

    [error] = gpu_numerics.compare(formula, {"x": torch.rand(9)}, device=CPU, dtype=dtype)
    assert not gpu_numerics.Check("x", dtype, error, gpu_numerics.TOLERANCES["formula"][dtype]).is_passed
    [error] = gpu_numerics.compare(torch.sigmoid, {"input": torch.rand(9)}, device=CPU, dtype=dtype)
    assert gpu_numerics.Check("x", dtype, error, gpu_numerics.TOLERANCES["formula"][dtype]).is_passed


def test_a_loss_that_is_not_finite_is_a_fault(tmp_path, monkeypatch):
    def run(trainer, config, case, **options):
        trainer.losses += [1.0, math.nan]

    monkeypatch.setattr(gpu_trainings, "run", run)
    faults = []
    gpu_trainings.train(None, object, None, faults, name="broken")
    assert faults == ["broken: losses [1.0, nan]."]


def test_faults_are_printed_and_end_in_an_error(monkeypatch, capsys):
    def report(scale, *, on_cpu, folder, faults):
        faults.append("x in float32: error 1 > 0.")
        yield "a line"

    monkeypatch.setattr(gpu_check, "report", report)
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["--cpu"])
    assert stopped.value.code == 1
    assert capsys.readouterr().out == "a line\n\nx in float32: error 1 > 0.\n"
