"""Re-point a task of lmms-eval to a local copy: `python -m vlm_entropy.eval.lmms_eval.local_tasks TASK DATA OUT`.

The copy is what `save_to_disk` of `datasets` wrote, with the task's split.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

TEMPLATES = Path(__file__).parent / "tasks"
"""One YAML for each task. It includes lmms-eval's own, under another name, and changes where the data are."""

JUDGED = ("mathverse_testmini", "mathverse_testmini_vision_only", "vl_rewardbench")
"""Scored by a language model, at the latest where a rule fails; which would show after all answers are there."""


def names() -> list[str]:
    """The tasks that can be re-pointed."""
    return sorted(path.stem for path in TEMPLATES.glob("*.yaml"))


def fill(text: str, *, stock: Path, data: Path) -> str:
    """Write the folder of lmms-eval's tasks and that of the data into a YAML, for ${STOCK} and ${DATA} in quotes."""
    for name, path in (("${STOCK}", stock), ("${DATA}", data)):
        text = text.replace(name, json.dumps(str(path))[1:-1])
    return text


def write_task(name: str, data: str, out: str) -> Path:
    """Write OUT/NAME.yaml, for `lmms_eval --include_path OUT --tasks NAME_local`.

    Raises:
        ValueError: for an unknown task, one that needs a judge where none is named, data that `save_to_disk` did not
            write, or an environment without lmms-eval.
    """
    if name not in names():
        raise ValueError(f"Unknown task {name!r}; allowed are {', '.join(names())}.")
    if name in JUDGED and "OPENAI_API_KEY" not in os.environ:
        raise ValueError(f"{name} is scored by a judge: set OPENAI_API_KEY, see {TEMPLATES / name}.yaml.")
    folder = Path(data).resolve()
    if not (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{data!r} is no folder of splits that `save_to_disk` wrote.")
    found = find_spec("lmms_eval")
    if found is None or found.origin is None:
        raise ValueError("lmms-eval is not installed here; run_scripts/lmms_eval.sh makes an environment with it.")
    path = Path(out, f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (TEMPLATES / path.name).read_text(encoding="utf-8")
    path.write_text(fill(text, stock=Path(found.origin).parent / "tasks", data=folder), encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) != 3:
            raise ValueError("needed are TASK, DATA and OUT: the task, the folder of its data, the one to write into.")
        print(write_task(*arguments))
    except (ValueError, OSError) as error:
        raise SystemExit(f"local_tasks: {error}") from None


if __name__ == "__main__":
    main()
