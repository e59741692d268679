"""A run that was killed and started again ends as if it had never stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from resume_cases import FLAGS, NEEDED, Kill, any_kill, assert_same_end, job, metrics, read, run_jobs, write_rows, zero
from resume_runs import POINTS
from safetensors.torch import load_file

from vlm_entropy.trainers import checkpoints
from vlm_entropy.trainers.__main__ import main, prepare
from vlm_entropy.trainers.checkpoint_files import last_whole_checkpoint
from vlm_entropy.trainers.methods import METHODS
from vlm_entropy.trainers.presets import PRESETS


class Case(NamedTuple):
    """A run, and where another one with the same flags is killed, again and again, before it may end."""

    flags: dict
    kills: list[Kill]
    processes: int = 1


CASES = {
    "grpo": Case({"method": "grpo"}, [Kill(point, 2) for point in POINTS]),
    "stages-and-attacks": Case(
        {"method": "two_stage+saei", **NEEDED["two_stage"], **NEEDED["saei"], "entropy_norm": "token"},
        [Kill("between steps", 5)],
    ),
    "egt": Case({"method": "egt", **NEEDED["egt"]}, [Kill("optimizer", 5)]),
    "sft": Case({"method": "sft", **NEEDED["sft"]}, [Kill("marker", 7)]),
    "controlled-bonus": Case(
        {"method": "adaptive_entropy_bonus", "entropy_target": 1, "entropy_coef_delta": 0.01}, [Kill("weights", 5)]
    ),
    "two-processes": Case(
        {"method": "clip_cov", "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2},
        [Kill("random states", 5, rank=1)],
        processes=2,
    ),
}


MORE = {
    "adapter": Case({"method": "grpo", "use_peft": "true", "beta": 0.1}, [Kill("weights", 5)]),
    "reference": Case(
        {"method": "grpo", "beta": 0.1, "sync_ref_model": "true", "ref_model_sync_steps": 3}, [Kill("sampling", 5)]
    ),
    "accumulation": Case(
        {"method": "two_stage", "gradient_accumulation_steps": 2, **NEEDED["two_stage"]}, [Kill("optimizer", 5)]
    ),
    **{
        f"zero{stage}": Case(
            {"method": "grpo", "per_device_train_batch_size": 4, "deepspeed": zero(stage)},
            [Kill("random states", 3, rank=1), Kill("marker", 5)],
            processes=2,
        )
        for stage in (2, 3)
    },
}
"""Ways to train that save other files, or that have other steps in a rollout."""


@pytest.fixture(scope="module")
def data(tiny_model, shapes, tmp_path_factory) -> dict:
    rows = write_rows(shapes, tmp_path_factory.mktemp("rows") / "rows.jsonl")
    return {"model_name_or_path": tiny_model, "data_file_paths": rows, "image_folders": shapes / "images"}


def run_cases(folder: Path, data: dict, cases: dict[str, Case], *, timeout: int) -> dict[str, list[list[int]]]:
    """For each case a run in the folder `whole` and one in `killed`, with the exit codes of all processes."""
    jobs, ends = [], []
    for name, case in cases.items():
        flags, size = {**FLAGS, **data, **case.flags}, {"processes": case.processes}
        jobs.append(job(flags, folder / name / "whole", **size))
        jobs += [job(flags, folder / name / "killed", kill, **size) for kill in [*case.kills, None]]
        ends.append(len(jobs))
    codes = run_jobs(folder, jobs, timeout=timeout)
    return {name: codes[start:end] for name, start, end in zip(cases, [0, *ends], ends)}


def assert_killed_and_resumed(folder: Path, case: Case, codes: list[list[int]]) -> None:
    ended = [0] * case.processes
    assert codes[0] == codes[-1] == ended
    for kill, code in zip(case.kills, codes[1:-1], strict=True):
        assert code[kill.rank] == -9, (kill, code)
    assert_same_end(folder / "whole", folder / "killed", processes=case.processes)


def asked_for(request, parameter: str) -> set[str]:
    """Values of a parameter of the tests of this file that are to be run."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return {item.callspec.params[parameter] for item in items if parameter in item.callspec.params}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("runs")
    cases = {name: CASES[name] for name in CASES if name in asked_for(request, "name")}
    return folder, run_cases(folder, data, cases, timeout=500)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_as_if_it_had_never_stopped(runs, name):
    folder, codes = runs
    assert_killed_and_resumed(folder / name, CASES[name], codes[name])


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def every_method(data, tmp_path_factory, request):
    processes, cases = request.param, {}
    for method in sorted(asked_for(request, "method")):
        base = PRESETS[method].method if method in PRESETS else method
        flags = {**FLAGS, "method": method, **NEEDED.get(method, NEEDED.get(base, {}))}
        flags["per_device_train_batch_size"] //= processes
        cases[method] = Case(flags, [any_kill(method, processes=processes)], processes)
    folder = tmp_path_factory.mktemp(f"every-method-{processes}")
    return folder, cases, run_cases(folder, data, cases, timeout=3500)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", [*METHODS, *PRESETS])
def test_every_method_ends_as_if_it_had_never_been_killed(every_method, method):
    folder, cases, codes = every_method
    print(cases[method].kills)
    assert_killed_and_resumed(folder / method, cases[method], codes[method])


def start(flags: dict, out: Path, **changes) -> None:
    main(job({**flags, **changes}, out)["flags"])


@pytest.fixture(scope="module")
def over(data, tmp_path_factory) -> tuple[dict, Path]:
    """The flags and the folder of a run of four steps, with a checkpoint in the midst of its second rollout."""
    flags = {**FLAGS, **data, "method": "grpo", "max_steps": 4, "logging_steps": 1, "save_steps": 1}
    flags["save_total_limit"] = None
    out = tmp_path_factory.mktemp("over") / "run"
    start(flags, out)
    return flags, out


@pytest.fixture
def copy(over, tmp_path) -> tuple[dict, Path]:
    return over[0], Path(shutil.copytree(over[1], tmp_path / "run"))


def test_a_run_that_is_over_trains_no_further(over, copy):
    flags, out = copy
    before = (out / "metrics.jsonl").read_text()
    start(flags, out)
    assert (out / "metrics.jsonl").read_text() == before
    assert [line["step"] for line in read(out / "metrics.jsonl")] == [1, 2, 3, 4, 4]
    weights = [load_file(folder / "model.safetensors") for folder in (over[1], out)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert not (out / "checkpoint-5").exists()


def test_the_summary_of_a_run_that_is_made_longer_is_written_anew(copy):
    flags, out = copy
    start(flags, out, max_steps=5)
    lines = read(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5]
    assert ["train_runtime" in line for line in lines] == [False] * 5 + [True]


def test_a_checkpoint_inside_a_rollout_wants_the_same_rollouts(copy):
    flags, out = copy
    message = "taken inside a rollout with steps_per_generation 3: resume with the same, not 1"
    with pytest.raises(ValueError, match=message):
        start(flags, out, steps_per_generation=1, resume_from_checkpoint=out / "checkpoint-2")
    start(flags, out, steps_per_generation=1, resume_from_checkpoint=out / "checkpoint-3")


def test_a_checkpoint_of_another_program_is_resumed_with_a_warning(copy, caplog):
    flags, out = copy
    foreign = out / "checkpoint-2"
    for name in ("complete.json", "run_state_0.pt"):
        (foreign / name).unlink()
    start(flags, out, resume_from_checkpoint=foreign)
    assert f"{foreign} is not of this program" in caplog.text
    assert [line["step"] for line in read(out / "metrics.jsonl")] == [1, 2, 3, 4, 4]


def test_a_path_to_a_checkpoint_that_was_cut_off_is_one_sentence(copy, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", pytest.fail)
    flags, out = copy
    (out / "checkpoint-3" / "run_state_0.pt").unlink()
    with pytest.raises(SystemExit, match=r"checkpoint-3' cannot be resumed from: run_state_0\.pt is missing\.$"):
        start(flags, out, resume_from_checkpoint=out / "checkpoint-3")


def test_the_one_before_a_checkpoint_that_was_cut_off_is_used_and_named(copy, capsys):
    flags, out = copy
    (out / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    run = prepare(job(flags, out)["flags"])
    assert run.checkpoint == str(out / "checkpoint-3")
    assert (
        f"{out}/checkpoint-4 cannot be resumed from: optimizer.pt has 0 bytes in place of" in capsys.readouterr().out
    )
    assert (out / "checkpoint-4").is_dir()


def test_the_last_whole_checkpoint_stays_until_the_next_one_is_whole(over, tmp_path, monkeypatch):
    flags, out = {**over[0], "save_total_limit": 1}, tmp_path / "run"
    write_marker = checkpoints.write_marker

    def crash_at_three(folder):
        if folder.name == "checkpoint-3":
            raise KeyboardInterrupt
        write_marker(folder)

    monkeypatch.setattr(checkpoints, "write_marker", crash_at_three)
    with pytest.raises(KeyboardInterrupt):
        start(flags, out)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert last_whole_checkpoint(out)[0] == out / "checkpoint-2"


def test_checkpoints_of_weights_alone_start_a_run_afresh(over, tmp_path, capsys):
    flags, out = {**over[0], "save_only_model": "true", "max_steps": 1}, tmp_path / "run"
    start(flags, out)
    assert prepare(job(flags, out)["flags"]).checkpoint is None
    assert "checkpoint-1 cannot be resumed from: it holds no state of the optimizer" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_other_files_come_back_too(data, tmp_path, name):
    codes = run_cases(tmp_path, data, {name: MORE[name]}, timeout=500)
    assert_killed_and_resumed(tmp_path / name, MORE[name], codes[name])


@pytest.mark.slow
def test_processes_of_torchrun_killed_at_any_time_end_as_if_they_never_were(data, tmp_path):
    rng = random.Random(0)
    flags = {**FLAGS, **data, "method": "two_stage+saei", **NEEDED["two_stage"], "per_device_train_batch_size": 4}
    flags["max_steps"] = 30
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def launch(out: Path) -> subprocess.Popen:
        command = [*launcher, "-m", "vlm_entropy.trainers", *job(flags, out)["flags"]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)

    assert launch(tmp_path / "whole").wait(timeout=400) == 0
    log = tmp_path / "killed" / "metrics.jsonl"
    for lines in (rng.randrange(1, 4), rng.randrange(5, 9)):
        run = launch(tmp_path / "killed")
        while run.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= lines):
            time.sleep(0.01)
        time.sleep(rng.random())
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        print("killed after", log.read_text().count("\n"), "log lines with", sorted(os.listdir(log.parent)))
    assert launch(tmp_path / "killed").wait(timeout=400) == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
