"""Which checkpoints of a run are whole, so that one cut off by a crash is passed over, and which may be deleted."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

MARKER = "complete.json"
"""Written last: the size of every other file of the checkpoint, in bytes, by its path inside the folder."""
RUN_STATE = "run_state_{}.pt"
"""What our trainers keep beside the files of `Trainer`, one file per process."""
STATE = "trainer_state.json"
NO_OPTIMIZER = "it holds no state of the optimizer (--model_name_or_path starts a new run from its weights)"


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Optimizer step and folder of every checkpoint in an output directory, in the order of the steps."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.is_dir()]
    return sorted((int(path.name[11:]), path) for path in folders if re.fullmatch(r"checkpoint-\d+", path.name))


def last_whole_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The latest checkpoint to resume from, if any, and a sentence on each later one that is passed over."""
    passed_over: list[str] = []
    for _, folder in reversed(list_checkpoints(output_dir)):
        fault = find_fault(folder)
        if fault is None:
            return folder, passed_over
        passed_over.append(f"{folder} cannot be resumed from: {fault}. It stays until its step comes again.")
    return None, passed_over


def find_fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None for a whole one.

    Files that `write_marker` lists must have the sizes that they had. A checkpoint of another program has no list: its
    training state must be readable, weights and the optimizer's state must be there, and no file may be cut off.
    """
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(folder.glob(RUN_STATE.format("*"))):
            return f"{MARKER}, which is written last, is missing"
        return _missing_part(folder) or next(filter(None, map(_cut_off, sorted(folder.rglob("*")))), None)
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes in place of {size}"
    return None if _has_optimizer(folder) else NO_OPTIMIZER


def write_marker(folder: Path) -> None:
    """Declare a checkpoint whole, in one step that a crash cannot divide."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER]
    draft = folder.with_name(f".{folder.name}.{MARKER}")
    draft.write_text(
        json.dumps({path.relative_to(folder).as_posix(): path.stat().st_size for path in files}, indent=1),
        encoding="utf-8",
    )
    draft.replace(folder / MARKER)


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; a crash leaves no part of it that could be taken for one."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)  # the rest of one that a crash kept from being deleted
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # network file systems keep names of open files for a while


def rotate_checkpoints(saved: Path, *, limit: int | None, keep: Iterable[Path] = ()) -> None:
    """Delete the oldest checkpoints before `saved`, until `limit` are left with it; those of later steps do not count.

    Args:
        saved: the whole checkpoint saved last, which stays.
        limit: how many stay; None or less than 1 for all.
        keep: checkpoints that stay whatever their age, counted like the others.
    """
    if limit is None or limit < 1:
        return
    step = int(saved.name[11:])
    earlier = [folder for number, folder in list_checkpoints(saved.parent) if number < step]
    kept = {path.resolve() for path in keep}
    deletable = [folder for folder in earlier if folder.resolve() not in kept]
    for rest in saved.parent.glob(".checkpoint-*.deleted"):
        shutil.rmtree(rest, ignore_errors=True)
    for folder in deletable[: max(0, len(earlier) + 1 - limit)]:
        remove_checkpoint(folder)


def _missing_part(folder: Path) -> str | None:
    try:
        json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{STATE} is missing"
    except ValueError:
        return f"{STATE} is cut off"
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(name for name in shards if not (folder / name).exists()):
            return f"{missing[0]} is missing"
    weights = ("*.safetensors", "pytorch_model*", "adapter_model.bin", "global_step*/*model_states.pt")
    if not any(any(folder.glob(pattern)) for pattern in weights):
        return "the weights are missing"
    return None if _has_optimizer(folder) else NO_OPTIMIZER


def _has_optimizer(folder: Path) -> bool:
    """Whether a checkpoint holds the state of an optimizer, of PyTorch's, FSDP's or DeepSpeed's."""
    latest = folder / "latest"
    if latest.is_file():
        return any((folder / latest.read_text(encoding="utf-8").strip()).glob("*.pt"))
    return any(folder.glob("optimizer*"))


def _cut_off(path: Path) -> str | None:
    """That a file of weights or of a state ends too early, by the table of contents of its format."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return None
        except SafetensorError:
            return f"{path.name} is cut off"
    if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
        return f"{path.name} is cut off"
    return None
