"""For the tests of killed and resumed runs: what each method needs, where it is killed, and what must come back."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from resume_runs import POINTS
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("resume_runs.py")
FLAGS = {
    "task_type": "plain",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "steps_per_generation": 3,
    "max_steps": 9,
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 3,
    "learning_rate": 1e-3,
    "reward_funcs": "random",
    "bf16": "false",
    "use_cpu": "true",
    "gradient_checkpointing": "false",
    "disable_tqdm": "true",
    "report_to": "none",
}
"""Rollouts of 3 steps, log lines of 3 and checkpoints every 2; 14 rows are two rollouts an epoch."""

EXPERT = {"expert_column": "response"}
NEEDED = {
    "calibrl": {**EXPERT, "correct_reward": "iou", "reward_funcs": "random iou"},
    "ecvgpo": {"r0": 2},
    "luffy": EXPERT,
    "rl_plus": EXPERT,
    "luffy_official": EXPERT,
    "rl_plus_official": EXPERT,
    "dapo": {"max_resamples": 2},
    "saei": {"save_adversarial_images": 6},
    "noisy_rollout": {"save_adversarial_images": 6},
    "two_stage": {"switch_step": 5},
    "grpo_12": {"per_device_train_batch_size": 12, "num_generations": None},
    "gspo": {"steps_per_generation": None},
    "egt": {"egt_stages": 2, "shuffle_dataset": "true"},
    "sft": {
        "response_column": "response",
        **dict.fromkeys(("num_generations", "max_completion_length", "steps_per_generation", "reward_funcs")),
    },
    **{preset: {} for preset in ("entropy_max", "entropy_min")},
    # The tiny model gives no answers: their own rewards are all alike, without a gradient.
    **{
        preset: {"reward_funcs": f"{reward} random"}
        for preset, reward in (("ttrl", "majority_box"), ("empo", "empo_box"), ("format_only", "format"))
    },
}
"""Flags of a method; None leaves one out."""
OF_THE_PROCESS = (
    *("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"),
    *("memory/peak_gib", "train_loss"),
)
"""Metrics of the time and memory of a process, and `train_loss`, by `Trainer` of the steps since the resume."""


OF_ALL_PROCESSES = ("between steps", "sampling", "random states")
"""Points that more than the main process passes."""


class Kill(NamedTuple):
    point: str
    step: int
    rank: int = 0


def any_kill(name: str, *, processes: int) -> Kill:
    """A point, a step and a process, random and the same in every run of the tests."""
    rng = random.Random(f"{name} {processes}")
    # The last rollout begins with step 6.
    point, step = rng.choice(list(POINTS)), min(rng.randrange(1, 8), 6)
    return Kill(point, step, rng.randrange(processes) if point in OF_ALL_PROCESSES else 0)


def zero(stage: int) -> str:
    """A configuration of DeepSpeed, without blanks."""
    sizes = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    optimization = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    return json.dumps({**sizes, "zero_optimization": optimization}, separators=(",", ":"))


def write_rows(shapes: Path, out: Path) -> Path:
    """Fourteen rows with the columns that methods read."""
    lines = (shapes / "train.jsonl").read_text().splitlines()[:14]
    rows = [
        {**json.loads(line), "response_entropy": float(row * 5 % 14), "is_noisy": row % 2 == 0}
        for row, line in enumerate(lines)
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def job(flags: dict, out: Path, kill: Kill | None = None, *, processes: int = 1) -> dict:
    given = {name: value for name, value in {**flags, "output_dir": out}.items() if value is not None}
    values = {name: value.split() if isinstance(value, str) else [str(value)] for name, value in given.items()}
    return {
        "flags": [part for name, parts in values.items() for part in (f"--{name}", *parts)],
        "notes": str(out.with_name(f"{out.name}-notes")),
        "processes": processes,
        "kill": kill and kill._asdict(),
    }


def run_jobs(folder: Path, jobs: list[dict], *, timeout: int) -> list[list[int]]:
    """The exit codes of the processes of each job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder / "jobs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return [json.loads(line)["codes"] for line in done.stdout.splitlines() if line.startswith("{")]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(out: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name not in OF_THE_PROCESS}
        for line in read(out / "metrics.jsonl")
    ]


def notes(out: Path, rank: int) -> list[tuple]:
    """(step, micro-batch, digest) in the order in which they were trained on."""
    lines = read(out.with_name(f"{out.name}-notes") / f"notes-{rank}.jsonl")
    return [(line["step"], line["microbatch"], line["digest"]) for line in lines if "digest" in line]


def assert_same_end(whole: Path, killed: Path, *, processes: int) -> None:
    """Weights, optimizer, training state, metrics, and the tensors of every micro-batch and of the random streams."""
    [weights] = [path.name for path in whole.glob("*model.safetensors")]
    expected = load_file(whole / weights)
    assert not any(tensor.isnan().any() for tensor in expected.values())
    torch.testing.assert_close(load_file(killed / weights), expected, rtol=0, atol=0)
    last = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name[11:])).name
    if not (whole / last / "latest").exists():  # DeepSpeed has files of its own
        assert is_trained(torch.load(whole / last / "optimizer.pt", weights_only=True))
        for name in ("optimizer.pt", "scheduler.pt"):
            expected, actual = (torch.load(out / last / name, weights_only=True) for out in (whole, killed))
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert metrics(killed) == metrics(whole)
    for rank in range(processes):
        expected, actual = notes(whole, rank), notes(killed, rank)
        assert len(expected) == len(set(expected))
        assert set(actual) == set(expected)  # a step trained on again after the kill saw the same, too
        assert len(actual) >= len(expected)
    pictures = [sorted(path.name for path in (out / "adversarial_images").glob("*")) for out in (whole, killed)]
    assert pictures[0] == pictures[1]


def is_trained(optimizer: dict) -> bool:
    """Whether Adam saw a gradient other than 0."""
    return any(bool(state["exp_avg_sq"].any()) for state in optimizer["state"].values())
