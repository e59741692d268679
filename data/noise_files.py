"""Label noise for a file, `python -m vlm_entropy.data noise`: one pass to know the answers, one to write."""

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_args

from vlm_entropy.rewards.geometry import Box, Point, Size, iou
from vlm_entropy.rewards.parsing import find_box, find_point

from .image_files import image_size
from .noise import noisy_box, noisy_class, noisy_number, noisy_point, noisy_preference, select_noisy

Kind = Literal["box", "point", "class", "number", "preference"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_EXAMPLES = 3
_BRACKETS = re.compile(r"\[[^\[\]]*\]|\([^()]*\)")


@dataclass
class NoiseArguments:
    """Make a share of the answers of a file wrong, once and for all, and say in `is_noisy` which ones."""

    data: str = field(metadata={"help": "Clean JSON Lines file in VLM-R1's format."})
    out: str = field(metadata={"help": "New file to write."})
    kind: Literal["box", "point", "class", "number", "preference"] = field(
        metadata={"help": "What the answers are. Boxes and points have to be pixels of the image files."}
    )
    ratio: float = field(
        metadata={"help": "Share of wrong answers, 0 to 1. A larger one keeps the wrong answers of a smaller one."}
    )
    seed: int = field(default=0, metadata={"help": "Of the choice of rows and of the wrong answers."})
    image_folder: str = field(
        default="", metadata={"help": "box, point: folder that the image paths start from; '' for none."}
    )
    box_column: str | None = field(
        default=None, metadata={"help": "point: column with the gold box that wrong points lie outside of."}
    )


@dataclass
class NoiseSummary:
    """What a run of `add_noise` changed."""

    kind: Kind
    rows: int = 0
    noisy: int = 0
    overlaps: list[float] = field(default_factory=list)
    """IoU of each true box with the one that replaced it."""
    examples: list[str] = field(default_factory=list)
    """The first changed rows, "train.jsonl:7: [0, 0, 8, 8] -> [12, 4, 20, 12]"."""

    def __str__(self) -> str:
        share = self.noisy / self.rows if self.rows else 0.0
        lines = [f"{self.noisy} of {self.rows} labels ({share:.1%}) of kind {self.kind} are wrong now"]
        if self.overlaps:
            lines.append(f"mean IoU of wrong and true boxes: {sum(self.overlaps) / len(self.overlaps):.3f}")
        return "\n".join([*lines, *self.examples])


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (source, record) of each line that is not blank.

    Raises:
        ValueError: for a line that is no JSON object, or that has an `is_noisy` column already.
    """
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            source = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{source}: not JSON: {error}.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{source}: the row is {short(record)}; a JSON object is needed.")
            if "is_noisy" in record:
                raise ValueError(f"{source}: the row has a column is_noisy already; start from the clean file.")
            yield source, record


def answer_turn(record: dict[str, Any]) -> dict[str, Any]:
    """The turn of a record that holds its answer: the second that is not from the system.

    Raises:
        ValueError: if there is none.
    """
    turns = record.get("conversations")
    turns = [turn for turn in turns if turn.get("from") != "system"] if isinstance(turns, list) else []
    if len(turns) < 2 or turns[1].get("value") in (None, ""):
        raise ValueError(f"conversations is {short(record.get('conversations'))}; a question and an answer are needed")
    return turns[1]


def answer_text(value: Any) -> str:
    """The answer without `<answer>` tags; one that is not text as JSON."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value.replace("<answer>", "").replace("</answer>", "").strip()


def with_answer(value: Any, text: str) -> Any:
    """`value` with its answer replaced by `text`, in the same form: text, text in tags, or JSON."""
    if not isinstance(value, str):
        return json.loads(text)
    return f"<answer>{text}</answer>" if "<answer>" in value else text


def _plain(numbers: Box | Point) -> str:
    """Numbers as a list; whole ones without a point."""
    return str([int(number) if float(number).is_integer() else number for number in numbers])


def noisy_boxes(text: str, size: Size, rng: random.Random) -> tuple[str, list[float]]:
    """Replace every box of an answer by one that overlaps none of the true ones; return text and IoUs.

    Raises:
        ValueError: if there is no box, or one that cannot be replaced.
    """
    found = [(part, find_box(part[0])) for part in _BRACKETS.finditer(text)]
    boxes = [(part, box) for part, box in found if box is not None]
    if not boxes:
        raise ValueError(f"the answer {short(text)} holds no box [x1, y1, x2, y2]")
    truth, overlaps = [box for _, box in boxes], []
    for place, (part, box) in reversed(list(enumerate(boxes))):
        wrong = noisy_box(box, size, rng, others=truth[:place] + truth[place + 1 :])
        overlaps.append(iou(box, wrong))
        text = text[: part.start()] + _plain(wrong) + text[part.end() :]
    return text, overlaps


def noisy_points(text: str, size: Size, rng: random.Random, box: Box | None) -> str:
    """Replace the first point of an answer; see `noisy_point`."""
    for part in _BRACKETS.finditer(text):
        point = find_point(part[0])
        if point is not None:
            wrong = _plain(noisy_point(point, size, rng, box=box))
            return text[: part.start()] + part[0][0] + wrong[1:-1] + part[0][-1] + text[part.end() :]
    raise ValueError(f"the answer {short(text)} holds no point [x, y]")


def _size_of(record: dict[str, Any], folder: str | Path) -> Size:
    name = record.get("image")
    if isinstance(name, list) and len(name) == 1:
        (name,) = name
    if not isinstance(name, str) or not name:
        raise ValueError(f"image is {short(name)}; boxes and points need one image")
    size = image_size(os.path.join(folder, name))
    if isinstance(size, str):
        raise ValueError(f"{size} The image folder is {str(folder)!r}.")
    return size


def _gold_box(record: dict[str, Any], column: str | None) -> Box | None:
    if column is None:
        return None
    box = find_box(str(record.get(column)))
    if box is None:
        raise ValueError(f"column {column!r} is {short(record.get(column))}; a box [x1, y1, x2, y2] is needed")
    return box


def _corrupter(
    kind: Kind, answers: list[str], folder: str | Path, box_column: str | None
) -> Callable[[str, dict[str, Any], random.Random], tuple[str, list[float]]]:
    """`corrupt(answer, record, rng)`, the wrong answer and the IoUs of boxes."""
    classes = sorted(set(answers)) if kind == "class" else []

    def corrupt(answer: str, record: dict[str, Any], rng: random.Random) -> tuple[str, list[float]]:
        match kind:
            case "box":
                return noisy_boxes(answer, _size_of(record, folder), rng)
            case "point":
                box = _gold_box(record, box_column)
                return noisy_points(answer, _size_of(record, folder), rng, box), []
            case "class":
                return noisy_class(answer, classes, rng), []
            case "number":
                return noisy_number(answer, answers, rng), []
            case "preference":
                return noisy_preference(answer), []

    return corrupt


def add_noise(
    data: str | Path,
    out: str | Path,
    *,
    kind: Kind,
    ratio: float,
    seed: int,
    image_folder: str | Path = "",
    box_column: str | None = None,
) -> NoiseSummary:
    """Copy a file of VLM-R1's JSON Lines with `round(ratio * N)` wrong answers, and `is_noisy` on every row.

    Only the answer changes. Other columns that speak of it (a warm-start `response`, a `trace`) stay as they are,
    so train those on the clean file.

    Args:
        data: the clean file; boxes and points in absolute pixels of the image files (solution space `absolute`).
        out: the file to write, which must not exist.
        kind: what the answers are: `box` (several in one answer are all replaced), `point`, `class`, `number` or
            `preference` ("1" or "2").
        ratio: share of wrong labels, in [0, 1].
        seed: of the choice of rows and of the wrong answers.
        image_folder: where the images of kinds `box` and `point` are; "" takes their paths as they are.
        box_column: of kind `point`, the column with the gold box that wrong points must lie outside of; without it
            they only differ from the true point.

    Returns:
        What was changed; `str()` of it is for people.

    Raises:
        ValueError: for a bad option, a row that cannot be read, that is noisy already, or whose answer cannot be
            made wrong; `out` is not written then.
    """
    data, out = Path(data), Path(out)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed are {', '.join(KINDS)}")
    if box_column is not None and kind != "point":
        raise ValueError(f"box_column is {box_column!r}, but only the kind point has a box beside its answer")
    if not data.is_file():
        raise ValueError(f"The data file {str(data)!r} does not exist.")
    if out.exists():
        raise ValueError(f"out must be a new file, got {out}")
    answers = _answers(data)
    chosen = set(select_noisy(len(answers), ratio, seed))
    corrupt = _corrupter(kind, answers, image_folder, box_column)
    summary = NoiseSummary(kind)
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as lines:
            for index, (source, record) in enumerate(read_records(data)):
                if index in chosen:
                    _make_wrong(source, record, corrupt, random.Random(f"{seed}:{index}"), summary)
                summary.rows += 1
                lines.write(json.dumps(record | {"is_noisy": index in chosen}, ensure_ascii=False) + "\n")
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    return summary


def _answers(data: Path) -> list[str]:
    """The answers of all rows, in file order."""
    answers = []
    for source, record in read_records(data):
        try:
            answers.append(answer_text(answer_turn(record)["value"]))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    if not answers:
        raise ValueError(f"{data} holds no row")
    return answers


def _make_wrong(
    source: str,
    record: dict[str, Any],
    corrupt: Callable[[str, dict[str, Any], random.Random], tuple[str, list[float]]],
    rng: random.Random,
    summary: NoiseSummary,
) -> None:
    """Replace the answer in `record` and count it in `summary`."""
    turn = answer_turn(record)
    answer = answer_text(turn["value"])
    try:
        wrong, overlaps = corrupt(answer, record, rng)
        turn["value"] = with_answer(turn["value"], wrong)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    summary.noisy += 1
    summary.overlaps += overlaps
    if len(summary.examples) < MAX_EXAMPLES:
        summary.examples.append(f"{source}: {answer} -> {wrong}")


def run(arguments: NoiseArguments) -> str:
    """Write the file that `arguments` describe; return the lines to print."""
    options = dict(vars(arguments))
    return str(add_noise(options.pop("data"), options.pop("out"), **options))
