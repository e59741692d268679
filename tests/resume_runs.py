"""Runs of the training command, one after the other, some of which end by SIGKILL at a point they are told.

Usage: python resume_runs.py JOBS.json

Each run is a process, or several that find each other as those of torchrun do, forked from this one, which has
imported what they need. Prints the exit codes of every run as a line of JSON, -9 for a process that was killed.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from hashlib import sha256
from multiprocessing.connection import wait
from pathlib import Path

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import numpy as np
import torch

from vlm_entropy.trainers import checkpoint_files, checkpoints
from vlm_entropy.trainers.__main__ import prepare, train

POINTS = {
    "between steps": "before a step",
    "sampling": "in the third forward of a rollout; of a loss, where there is none",
    "weights": "with half of the weights written",
    "optimizer": "with half of the optimizer's state written",
    "random states": "with neither random states nor the state of the run written",
    "marker": "with everything but the list of files written",
    "rotation": "with a file of an older checkpoint deleted",
}
"""Where a run can be killed."""


class Watched:
    """A trainer that notes the tensors of each micro-batch, and kills its process at one of `POINTS`."""

    notes: Path
    kill: dict | None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.forwards = Counter(), None
        self.model.register_forward_pre_hook(self.count_forward)

    def note(self, **line):
        with self.notes.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pass_point(self, point, prepare_to_die=lambda: None):
        step = self.state.global_step
        if self.kill and self.kill["point"] == point and step >= self.kill["step"]:
            prepare_to_die()
            self.note(killed=point, step=step)
            os.kill(os.getpid(), signal.SIGKILL)

    def count_forward(self, *args):
        if self.forwards is not None:
            self.forwards += 1
            if self.forwards == 3:
                self.pass_point("sampling")

    def training_step(self, *args, **kwargs):
        self.pass_point("between steps")
        return super().training_step(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.forwards = 0
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.forwards = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        step = self.state.global_step
        self.note(step=step, microbatch=self.losses[step], digest=digest(inputs))
        self.losses[step] += 1
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not hasattr(super(), "_generate_and_score_completions"):
            self.pass_point("sampling")
        return loss

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call=_internal_call)
        if _internal_call:
            self.pass_point("weights", lambda: cut(*Path(output_dir).glob("*model.safetensors")))
        else:
            states = (torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1]), repr(random.getstate()))
            self.note(step=self.state.global_step, microbatch="end", digest=digest(dict(enumerate(states))))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        self.pass_point("optimizer", lambda: cut(Path(output_dir) / "optimizer.pt"))

    def _save_rng_state(self, output_dir):
        self.pass_point("random states")
        super()._save_rng_state(output_dir)

    def _save_checkpoint(self, model, trial):
        write_marker, rmtree = checkpoints.write_marker, shutil.rmtree

        def delete_one(folder, **kwargs):
            if Path(folder).exists():
                self.pass_point("rotation", lambda: next(Path(folder).rglob("*.pt")).unlink())
            rmtree(folder, **kwargs)

        checkpoints.write_marker = lambda folder: (self.pass_point("marker"), write_marker(folder))
        checkpoint_files.shutil.rmtree = delete_one
        try:
            super()._save_checkpoint(model, trial)
        finally:
            checkpoints.write_marker, checkpoint_files.shutil.rmtree = write_marker, rmtree


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def digest(values: dict) -> str:
    """Of tensors and plain values by name."""
    parts = [
        (name, (value.dtype, tuple(value.shape), value.detach().flatten().view(torch.uint8).numpy().tobytes()))
        if isinstance(value, torch.Tensor) and value.numel()
        else (name, str(value))
        for name, value in sorted(values.items())
    ]
    return sha256(repr(parts).encode()).hexdigest()


def run(job: dict, rank: int, port: int) -> None:
    log = os.open(Path(job["notes"]) / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    if job["processes"] > 1:
        ranks = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": job["processes"],
            "LOCAL_WORLD_SIZE": job["processes"],
        }
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in {**ranks, **address}.items()})
    run = prepare(job["flags"])
    notes = Path(job["notes"]) / f"notes-{rank}.jsonl"
    kill = job["kill"] if job["kill"] and job["kill"]["rank"] == rank else None
    trainer = type("WatchedTrainer", (Watched, run.method.trainer), {"notes": notes, "kill": kill})
    run.method = run.method._replace(trainer=trainer)
    train(run)


def start(job: dict) -> list[int]:
    """Run the processes of a job to their ends; when one is killed, the others are too, as a launcher does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(job["notes"]).mkdir(parents=True, exist_ok=True)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(job, rank, port)) for rank in range(job["processes"])]
    for process in processes:
        process.start()
    while running := [process.sentinel for process in processes if process.exitcode is None]:
        wait(running)
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text()):
        begun = time.time()
        print(json.dumps({"codes": start(one), "seconds": round(time.time() - begun, 1)}), flush=True)
