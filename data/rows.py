"""From files to rows: VLM-R1's JSON Lines format, every image opened and decoded once before a run starts.

A line:  {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>Where is the cat?"},
                                                       {"from": "gpt", "value": "<answer>[10, 20, 30, 40]</answer>"}]}
`image` is a path, a list of paths, or absent for a row of text. Turns from "system" are passed over; the first other
turn is the question, the second the answer, later ones are dropped. All other columns are kept for the rewards.
"""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

from PIL import ExifTags, Image

from vlm_entropy.rewards.geometry import Size

MAX_ASPECT_RATIO = 200  # Qwen's image processor refuses images beyond it
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Row:
    """One usable row. `image_sizes` are (width, height) in pixels, upright as the EXIF orientation says."""

    source: str
    """Where it comes from, "path/file.jsonl:12", lines counted from 1."""
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


class RowError(ValueError):
    """The reason why one row cannot be used."""


def _pair_files_with_folders(data_file_paths: str, image_folders: str | None) -> list[tuple[str, str]]:
    files = data_file_paths.split(":")
    folders = [""] * len(files) if image_folders is None else image_folders.split(":")
    if len(files) != len(folders):
        raise ValueError(
            f"Each data file needs its image folder, got {len(files)} data files ({data_file_paths!r}) "
            f"and {len(folders)} image folders ({image_folders!r}), both joined by ':'."
        )
    return list(zip(files, folders, strict=True))


def _lines(path: str) -> list[tuple[str, str]]:
    """Return (source, text) of each line that is not blank."""
    if not Path(path).is_file():
        raise ValueError(f"The data file {path!r} does not exist.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(f"{path}:{number}", line) for number, line in enumerate(file, start=1) if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"The data file {path!r} is not UTF-8: {error}.") from error
    if lines and lines[0][1].lstrip().startswith("["):
        raise ValueError(f"{path!r} is a JSON array; JSON Lines is expected, one object per line.")
    return lines


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


def _parse(source: str, line: str, folder: str) -> Row:
    """Turn one line into a row whose image sizes are still unknown."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise RowError(f"the row is {short(record)}; a JSON object is needed.")
    question, answer = _turn_values(record.pop("conversations", None))
    images = _image_paths(record.pop("image", None), folder)
    if not isinstance(question, str) or not question.replace("<image>", "").strip():
        raise RowError(f"the question is {short(question)}; a text is needed.")
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    text = text.replace("<answer>", "").replace("</answer>", "").strip()
    if answer is None or not text:
        raise RowError(f"the answer is {short(answer)}; a text, number, list or object is needed.")
    return Row(source, images, (), question.replace("<image>", "").strip(), text, record)


def _parse_or_bad(source: str, line: str, folder: str) -> Row | BadRow:
    try:
        return _parse(source, line, folder)
    except RowError as error:
        return BadRow(source, str(error))


def _image_size(path: str) -> Size | str:
    """Decode one image and return its upright (width, height), or the reason why it cannot be used."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.draft("RGB", (1, 1))  # a JPEG decodes at an eighth of its size, and still to its last byte
            image.load()
            sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    except FileNotFoundError:
        return f"the image {path!r} does not exist."
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"the image {path!r} cannot be read: {error}."
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return f"the image {path!r} is {width}x{height}; a side may be at most {MAX_ASPECT_RATIO} times the other."
    return (height, width) if sideways else (width, height)


def _measure(row: Row | BadRow, sizes: Mapping[str, Size | str]) -> Row | BadRow:
    if isinstance(row, BadRow):
        return row
    measured = [sizes[path] for path in row.images]
    for size in measured:
        if isinstance(size, str):
            return BadRow(row.source, size)
    return replace(row, image_sizes=tuple(size for size in measured if not isinstance(size, str)))


def read_rows(
    data_file_paths: str, image_folders: str | None, *, skip_bad_rows: bool = False
) -> tuple[list[Row], list[BadRow]]:
    """Read the rows of all data files, in order, and open and decode every image once.

    Args:
        data_file_paths: JSON Lines files joined by ":", so a path with a ":" in it is not supported.
        image_folders: one folder per data file, joined by ":"; "" takes the paths in that file as they are, and None
            does so for all files.
        skip_bad_rows: return the rows that cannot be used instead of stopping at the first one.

    Returns:
        The usable rows and the bad rows, the latter empty unless `skip_bad_rows`.

    Raises:
        ValueError: for a missing data file, one that is a JSON array or not UTF-8, unequal counts, the first bad row
            in file order (unless skipped), and if no row is left.
    """
    parsed: list[Row | BadRow] = []
    for path, folder in _pair_files_with_folders(data_file_paths, image_folders):
        parsed += [_parse_or_bad(source, line, folder) for source, line in _lines(path)]
    paths = list(dict.fromkeys(image for row in parsed if isinstance(row, Row) for image in row.images))
    with ThreadPoolExecutor() as pool:
        sizes = dict(zip(paths, pool.map(_image_size, paths), strict=True))
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
