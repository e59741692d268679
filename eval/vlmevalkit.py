"""Our answers as a prediction file of VLMEvalKit, to be scored there: `python -m vlm_entropy.eval export`.

    PRED_FORMAT=tsv vlmutil eval MMStar runs/mmstar/qwen_MMStar.tsv

VLMEvalKit reads MODEL_DATASET.tsv, with every column of the data set's table but `image`, and `prediction`;
https://github.com/open-compass/VLMEvalKit, vlmeval/inference.py and vlmeval/smp/file.py. PRED_FORMAT=tsv makes it
write what it derives from the file in the same format. A few of its data sets, of videos, take .xlsx only. As in files
of its own, it reads an empty prediction, "None" or "NA" as a missing value.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from reprlib import repr as short
from typing import Any

from vlm_entropy.data.convert import write_whole
from vlm_entropy.rewards.parsing import find_final_answer

PREDICTION = "prediction"


@dataclass
class ExportArguments:
    """Write the answers of a run as VLMEvalKit's MODEL_DATASET.tsv."""

    run: str = field(metadata={"help": "Folder of `eval run`, with predictions.jsonl; its ids are the table's index."})
    data: str = field(metadata={"help": "VLMEvalKit's table of the data set, DATASET.tsv."})
    model: str = field(metadata={"help": "Name of the model in the file name."})
    out: str = field(metadata={"help": "Folder to write into, which VLMEvalKit will write its scores into."})
    dataset: str | None = field(
        default=None, metadata={"help": "VLMEvalKit's name of the data set. Default: that of the table."}
    )
    final_answer: bool = field(
        default=False,
        metadata={
            "help": "Write only what stands in <answer> or \\boxed{}, where there is such: its rules for choices trip "
            "over letters in the reasoning."
        },
    )

    def __post_init__(self):
        self.dataset = self.dataset or Path(self.data).stem
        for name in ("model", "dataset"):
            value = getattr(self, name)
            if not value or "/" in value or "\\" in value:
                raise ValueError(f"--{name} is {value!r}; a name without slashes is needed for the file.")


def export(arguments: ExportArguments) -> None:
    """Write the file; print where it is.

    Raises:
        ValueError: for what `read_predictions` and `merge` refuse, or a file that is there already.
    """
    path = Path(arguments.out, f"{arguments.model}_{arguments.dataset}.tsv")
    if path.exists():
        raise ValueError(f"{str(path)!r} exists; remove it or name another folder.")
    predictions = read_predictions(Path(arguments.run, "predictions.jsonl"), final_answer=arguments.final_answer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _long_fields(), open(arguments.data, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", strict=True)
        try:
            write_whole(path, _lines(merge(rows, predictions, name=arguments.data)))
        except csv.Error as error:
            raise ValueError(f"{arguments.data}:{rows.line_num} is no row of a table: {error}.") from error
    print(f"wrote {path}: {len(predictions)} rows; score it with `vlmutil eval {arguments.dataset} {path}`")


def read_predictions(path: Path, *, final_answer: bool) -> dict[str, str]:
    """Return the response by id of a run's predictions.jsonl.

    The line {"id": "7", "sample": 0, "response": "<think>A or B</think><answer>B</answer>", ...}
    becomes  {"7": "B"} with `final_answer`, or the whole response.

    Raises:
        ValueError: for a file that is missing, a line that is none of a prediction, several samples of an item, or an
            id twice.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is missing; --run is the folder of a finished `eval run`.")
    predictions: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            name, response = _prediction(line, f"{path}:{number}")
            if name in predictions:
                raise ValueError(f"{path}:{number} has the id {name!r}, which stands there before.")
            predictions[name] = (find_final_answer(response) or response) if final_answer else response
    return predictions


def _prediction(line: str, place: str) -> tuple[str, str]:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}.") from error
    if not isinstance(found, dict) or "id" not in found or not isinstance(found.get("response"), str):
        raise ValueError(f"{place} is {short(line.strip())}; an object with id and response is needed.")
    if found.get("sample", 0) != 0:
        raise ValueError(
            f"{place} is sample {found['sample']}; VLMEvalKit takes one answer of an item: use --samples 1."
        )
    return str(found["id"]), found["response"]


def merge(rows: "csv.DictReader[str]", predictions: dict[str, str], *, name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table with their prediction and without `image`, in their order.

    Args:
        rows: of the table.
        predictions: text by index.
        name: of the table, for errors.

    Raises:
        ValueError: for a table without index, with it twice or with a prediction; a row of another length; a row
            without prediction; a prediction without row.
    """
    columns = rows.fieldnames or []
    if "index" not in columns:
        raise ValueError(f"{name!r} has no column index; it has {', '.join(columns) or 'none'}.")
    if PREDICTION in columns:
        raise ValueError(f"{name!r} has a column {PREDICTION} already; the table of the data set is needed.")
    left = dict(predictions)
    for row in rows:
        if None in row or None in row.values():  # csv's marks of a row that is too long or too short
            raise ValueError(f"{name}:{rows.line_num} has not the {len(columns)} fields of its header.")
        index = row["index"]
        if index not in predictions:
            raise ValueError(f"{name}:{rows.line_num} has the index {short(index)}, to which the run has no answer.")
        if index not in left:
            raise ValueError(f"{name}:{rows.line_num} has the index {short(index)}, which stands there before.")
        yield {**{column: value for column, value in row.items() if column != "image"}, PREDICTION: left.pop(index)}
    if left:
        raise ValueError(f"{len(left)} answers have no row in {name!r}, the first to {short(next(iter(left)))}.")


def _lines(rows: Iterable[dict[str, str]]) -> Iterator[bytes]:
    """VLMEvalKit's own form: every field in quotes."""
    for number, row in enumerate(rows):
        text = StringIO()
        writer = csv.writer(text, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        if number == 0:
            writer.writerow(row)
        writer.writerow(row.values())
        yield text.getvalue().encode()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read fields as long as an image."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
