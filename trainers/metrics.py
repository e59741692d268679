"""Training metrics as JSON Lines, and the options of the run, beside the checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

SUMMARY = "train_runtime"
"""What only the line at the end of a run has."""


class MetricsWriter(TrainerCallback):
    """Append every log line of a run to `<output_dir>/metrics.jsonl`, as {"step": ..., name: value, ...}.

    A resumed run drops the lines after the checkpoint it starts from, so that every step stands in the file once. The
    summary at the end ("train_runtime") stays if the run was over, and is not written a second time.
    Values that JSON cannot hold (NaN, infinity) become null. Only the main process writes.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self._path = Path(args.output_dir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_over = state.global_step >= state.max_steps
        kept = [
            line
            for line in read_lines(self._path)
            if line["step"] <= state.global_step and (is_over or SUMMARY not in line)
        ]
        self._has_summary = any(SUMMARY in line for line in kept)
        replacement = self._path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        replacement.replace(self._path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or (self._has_summary and SUMMARY in (logs or {})):
            return
        line = {"step": state.global_step, **{name: _jsonable(value) for name, value in (logs or {}).items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_options(options: dict[str, Any], folder: Path) -> None:
    """Write all options of a run as `run_config.json`; what JSON does not know stands there as text."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(options, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    (folder / "run_config.json").write_text(text + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a metrics file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _jsonable(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
