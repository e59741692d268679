"""Work in numbered batches that a killed run continues: every process appends what it has finished to a file."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .convert import write_whole
from .processes import processes

Line = dict[str, Any]


class Finished(NamedTuple):
    """What all processes have made of all batches."""

    lines: list[Line]
    """Of every batch, in the order of the batches."""
    seconds: float
    """Time that the batches took, added up over processes and over the runs that were killed."""


def read_batches(folder: Path) -> dict[int, Line]:
    """The finished batches of all processes by number; a last line cut off by a crash counts for nothing."""
    batches: dict[int, Line] = {}
    for path in sorted(folder.glob("part-*.jsonl")):
        text = path.read_bytes()
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            batch = json.loads(line)
            batches[batch["batch"]] = batch
    return batches


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder the place of one job, or check that it is that of the same job.

    Raises:
        ValueError: if it holds work that was done with other settings, naming one of them.
    """
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(settings))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{str(folder)!r} holds work with {name} {found.get(name)!r}, and this run has "
                    f"{wanted.get(name)!r}: name another folder, or remove that one."
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, [json.dumps(wanted, indent=2, ensure_ascii=False).encode() + b"\n"])


def finish_batches(
    folder: Path, count: int, work: Callable[[Sequence[int]], Iterable[tuple[int, list[Line]]]]
) -> Finished:
    """Do the batches that no earlier run has finished, and return those of all processes and runs.

    To be called by all processes together. A batch belongs to one process and is written at once, so that after a
    kill it is there or it is not.

    Args:
        folder: what `claim` has checked.
        count: batches, numbered from 0.
        work: `work(numbers)` yields (number, lines) of each of these batches, as they get done.
    """
    state = processes()
    state.wait_for_everyone()
    done = read_batches(folder)
    state.wait_for_everyone()  # no process may write before all have read
    own = [number for number in range(count) if number not in done][state.process_index :: state.num_processes]
    with _appending(folder / f"part-{state.process_index}.jsonl") as file:
        start = time.perf_counter()
        for number, lines in work(own):
            now = time.perf_counter()
            batch = {"batch": number, "seconds": round(now - start, 3), "lines": lines}
            file.write(json.dumps(batch, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            start = now
    state.wait_for_everyone()
    done = read_batches(folder)
    lines = [line for number in range(count) for line in done[number]["lines"]]
    return Finished(lines, sum(batch["seconds"] for batch in done.values()))


def _appending(path: Path) -> Any:
    """The file, opened to append after its last whole line."""
    file = path.open("ab+")
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    return file
