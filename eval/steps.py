"""Commands of a comparison: each in a process of its own with a log, done once, on GPUs of its own."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vlm_entropy.data.convert import write_whole
from vlm_entropy.data.resumable import claim

LAST_LINES = 12
LONGEST_LINE = 300
GRACE = 10.0
"""Seconds that a command may take to end when it is told to."""


@dataclass(frozen=True)
class Step:
    """One public command."""

    folder: Path
    """Holds settings.json with the command, log.txt, and done.json once it has ended well."""
    command: tuple[str, ...]
    """Without the interpreter: ("-m", "vlm_entropy.eval", "run", ...)."""
    replaces: Path | None = None
    """Folder inside the comparison's that the command wants new: removed if an earlier attempt left it unfinished."""

    def claim(self) -> None:
        """Raise `ValueError` if the folder belongs to another command."""
        claim(self.folder, {"command": list(self.command)})

    def seconds(self) -> float | None:
        """Time that the command took, None if it has not ended well."""
        path = self.folder / "done.json"
        return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else None


class StepFailed(Exception):
    """A command ended in an error; the message has the last lines of its log."""


class Runner:
    """Runs steps, from several threads at once, and ends them all when told to."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.is_stopped = False

    def run(self, step: Step, *, gpus: Sequence[str] | None) -> None:
        """Run a step that is not done.

        Another comparison may be at it still, such as one whose parent was killed: its end is waited for.

        Args:
            step: what to run.
            gpus: the only ones that the command sees; None leaves it those of this process.

        Raises:
            StepFailed: if it ends in an error, or all are told to end.
        """
        with _locked(step.folder) as lock:
            if step.seconds() is not None:
                return
            if step.replaces is not None and (step.folder / "log.txt").is_file() and step.replaces.is_dir():
                shutil.rmtree(step.replaces)
            start = time.monotonic()
            with (step.folder / "log.txt").open("ab") as log:
                log.write(f"$ python {' '.join(step.command)}\n".encode())
                log.flush()
                code = self._wait(step, log, lock, _environment(gpus))
            if code:
                raise StepFailed(f"{step.folder.name} ended with exit code {code}:\n{last_lines(step.folder)}")
            done = {"seconds": round(time.monotonic() - start, 1)}
            write_whole(step.folder / "done.json", [json.dumps(done).encode() + b"\n"])

    def _wait(self, step: Step, log: BinaryIO, lock: int, environment: Mapping[str, str]) -> int:
        with self._lock:
            if self.is_stopped:
                raise StepFailed(f"{step.folder.name} was not started: the comparison was told to end.")
            process = subprocess.Popen(
                [sys.executable, *step.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=[lock],
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """End all running steps, and start no other."""
        with self._lock:
            self.is_stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a step; its process inherits it, so it lasts as long as either lives."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for an earlier process that is still at {folder}.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _environment(gpus: Sequence[str] | None) -> dict[str, str]:
    own = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return {**os.environ, **own}


def last_lines(folder: Path) -> str:
    """The end of a step's log, of a progress bar only what it showed last."""
    text = (folder / "log.txt").read_bytes().decode(errors="replace")
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n") if line.strip()]
    return "\n".join(f"    {line[:LONGEST_LINE]}" for line in lines[-LAST_LINES:])
