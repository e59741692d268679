"""From files to rows: VLM-R1's records, every image checked once before a run starts.

A record:  {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>Where is the cat?"},
                                                       {"from": "gpt", "value": "<answer>[10, 20, 30, 40]</answer>"}]}
`image` is a path, a list of paths, or absent for a row of text. Turns from "system" are passed over; the first other
turn is the question, the second the answer, later ones are dropped. All other columns are kept for the rewards.
VLM-R1's older {"image": "a.jpg", "problem": "Where is the cat?", "solution": [10, 20, 30, 40]} is the same row.
"""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Any

from vlm_entropy.rewards.geometry import Size

from .files import RowError, read_items
from .image_files import image_size

REWARD_METHOD = "accu_reward_method"


@dataclass(frozen=True)
class Row:
    """One usable row. `image_sizes` are (width, height) in pixels, upright as the EXIF orientation says."""

    source: str
    """Where it comes from, "path/file.jsonl:12", lines (of an array: items) counted from 1."""
    images: tuple[str, ...]
    """Paths with their folder; empty for a row of text."""
    image_sizes: tuple[Size, ...]
    question: str
    """Without `<image>` markers."""
    answer: str
    """Without `<answer>` tags; a number, list or object as JSON."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Every other top-level column."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why, in one sentence with the offending value."""

    source: str
    reason: str


def _split_by_file(joined: str | None, files: list[str], joined_files: str, what: str) -> list[str]:
    """Split values joined by ":", one per data file; None gives "" for each."""
    values = [""] * len(files) if joined is None else joined.split(":")
    if len(values) != len(files):
        raise ValueError(
            f"Each data file needs its {what}, got {len(files)} data files ({joined_files!r}) "
            f"and {len(values)} {what}s ({joined!r}), both joined by ':'."
        )
    return values


def _image_paths(value: Any, folder: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise RowError(f"image is {short(value)}; a path, a list of paths or nothing is allowed.")
    return tuple(os.path.join(folder, name) for name in names)


def _turn_values(conversations: Any) -> tuple[Any, Any]:
    """Return the values of the first two turns that are not from the system, None for a missing one."""
    if not isinstance(conversations, list) or not conversations:
        raise RowError(f"conversations is {short(conversations)}; a list of a question and an answer is needed.")
    if not all(isinstance(turn, dict) for turn in conversations):
        raise RowError(f"conversations is {short(conversations)}; every turn must be an object with a value.")
    values = [turn.get("value") for turn in conversations if turn.get("from") != "system"]
    question, answer = [*values, None, None][:2]
    return question, answer


def _question_and_answer(record: dict[str, Any]) -> tuple[Any, Any]:
    """Take the question and the answer out of `record`: `conversations`, or VLM-R1's older `problem`, `solution`."""
    if "conversations" not in record and {"problem", "solution"} <= record.keys():
        return record.pop("problem"), record.pop("solution")
    return _turn_values(record.pop("conversations", None))


def _parse(source: str, record: Any, folder: str, reward_method: str) -> Row:
    """Turn one record into a row whose image sizes are still unknown."""
    if isinstance(record, RowError):
        raise record
    if not isinstance(record, dict):
        raise RowError(f"the row is {short(record)}; a JSON object is needed.")
    question, answer = _question_and_answer(record)
    images = _image_paths(record.pop("image", None), folder)
    if not isinstance(question, str) or not question.replace("<image>", "").strip():
        raise RowError(f"the question is {short(question)}; a text is needed.")
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    text = text.replace("<answer>", "").replace("</answer>", "").strip()
    if answer is None or not text:
        raise RowError(f"the answer is {short(answer)}; a text, number, list or object is needed.")
    if reward_method and record.get(REWARD_METHOD) is None:
        record[REWARD_METHOD] = reward_method
    return Row(source, images, (), question.replace("<image>", "").strip(), text, record)


def _parse_or_bad(source: str, record: Any, folder: str, reward_method: str) -> Row | BadRow:
    try:
        return _parse(source, record, folder, reward_method)
    except RowError as error:
        return BadRow(source, str(error))


def _measure(row: Row | BadRow, sizes: Mapping[str, Size | str]) -> Row | BadRow:
    if isinstance(row, BadRow):
        return row
    measured = [sizes[path] for path in row.images]
    for size in measured:
        if isinstance(size, str):
            return BadRow(row.source, size)
    return replace(row, image_sizes=tuple(size for size in measured if not isinstance(size, str)))


def read_rows(
    data_file_paths: str,
    image_folders: str | None,
    *,
    reward_methods: str | None = None,
    skip_bad_rows: bool = False,
    decode_images: bool = False,
) -> tuple[list[Row], list[BadRow]]:
    """Read the rows of all data files, in order, and check every image once.

    Args:
        data_file_paths: JSON Lines, JSON arrays or YAML lists of them (see `files.read_items`), joined by ":", so a
            path with a ":" in it is not supported.
        image_folders: one folder per data file, joined by ":"; "" takes the paths in that file as they are, and None
            does so for all files.
        reward_methods: VLM-R1's `--reward_method`, one per data file, joined by ":". It becomes the column
            `accu_reward_method` of the rows that have none of their own; "" and None leave them without.
        skip_bad_rows: return the rows that cannot be used instead of stopping at the first one.
        decode_images: decode every image, which also finds damage in the middle of a file. Otherwise JPEG and PNG
            files are read at their header and their end, and only other formats are decoded.

    Returns:
        The usable rows and the bad rows, the latter empty unless `skip_bad_rows`.

    Raises:
        ValueError: for a data file that is missing or cannot be read, unequal counts, the first bad row in file order
            (unless skipped), and if no row is left.
    """
    files = data_file_paths.split(":")
    folders = _split_by_file(image_folders, files, data_file_paths, "image folder")
    methods = _split_by_file(reward_methods, files, data_file_paths, "reward method")
    parsed = [
        _parse_or_bad(source, record, folder, method)
        for path, folder, method in zip(files, folders, methods, strict=True)
        for source, record in read_items(path)
    ]
    paths = list(dict.fromkeys(image for row in parsed if isinstance(row, Row) for image in row.images))
    check = partial(image_size, decode=decode_images)
    with ThreadPoolExecutor() as pool:
        sizes = dict(zip(paths, pool.map(check, paths), strict=True))
    measured = [_measure(row, sizes) for row in parsed]
    rows = [row for row in measured if isinstance(row, Row)]
    bad_rows = [row for row in measured if isinstance(row, BadRow)]
    if bad_rows and not skip_bad_rows:
        raise ValueError(f"{bad_rows[0].source}: {bad_rows[0].reason}")
    if not rows:
        raise ValueError(f"No usable row in {data_file_paths!r}; {len(bad_rows)} bad rows were skipped.")
    return rows, bad_rows


def write_bad_rows(bad_rows: Iterable[BadRow], path: str | Path) -> None:
    """Write bad rows as JSON Lines, {"source": "file.jsonl:12", "reason": "..."}."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad_rows)
