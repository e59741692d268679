"""Training metrics as JSON Lines beside the checkpoints."""

import json
import math
from pathlib import Path

from transformers import TrainerCallback


class MetricsWriter(TrainerCallback):
    """Append every log line of a run to `<output_dir>/metrics.jsonl`, as {"step": ..., name: value, ...}.

    A resumed run drops the lines after the checkpoint it starts from, so that every step stands in the file once.
    Values that JSON cannot hold (NaN, infinity) become null. Only the main process writes.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self._path = Path(args.output_dir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(self._path) if line["step"] <= state.global_step]
        replacement = self._path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        replacement.replace(self._path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **{name: _jsonable(value) for name, value in (logs or {}).items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a metrics file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _jsonable(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
