"""Rows of a table, wherever it is: a local file, a folder, or a data set on the hub; images stay encoded."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE_SUFFIXES = (".parquet", ".json", ".jsonl")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BATCH_ROWS = 64


def _plain(value: Any) -> Any:
    """Return `value` with the struct of an image, {"bytes": ..., "path": ...}, replaced by its bytes or its path."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else value["bytes"]
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _parquet_rows(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number} is not JSON: {error}.") from error


def _json_array(path: Path) -> Iterator[Any]:
    """Yield the items of a JSON array; the whole array is in memory."""
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(items, list):
        raise ValueError(f"{path} holds a JSON {type(items).__name__}; an array of rows is needed.")
    yield from items


_READERS = {".parquet": _parquet_rows, ".jsonl": _json_lines, ".json": _json_array}


def _one_split(splits: Any, path: str, split: str | None) -> Any:
    """Return the split that was asked for, or the only one there is."""
    if not isinstance(splits, Mapping):
        return splits
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        raise ValueError(f"{path!r} has the splits {', '.join(map(str, splits))}; split is {split!r}, name one.")
    return splits[split]


def _dataset_rows(path: str, split: str | None, config: str | None) -> Iterator[Any]:
    """Yield the rows of a folder or a hub data set, streamed, with no image decoded."""
    from datasets import Dataset, load_dataset, load_from_disk

    if any(Path(path, name).is_file() for name in ("dataset_dict.json", "state.json")):
        data = _one_split(load_from_disk(path), path, split)
    else:
        data = _one_split(load_dataset(path, config, streaming=True), path, split)
    yield from (data.to_iterable_dataset() if isinstance(data, Dataset) else data).decode(False)


def read_table(path: str, *, split: str | None, config: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, one at a time.

    A row {"question": "Where?", "image": {"bytes": b"...", "path": "a.jpg"}} of the table
    becomes {"question": "Where?", "image": b"..."}; with no bytes in it, {"question": "Where?", "image": "a.jpg"}.
    Memory is constant but for a `.json` array, which is read as a whole.

    Args:
        path: a `.parquet`, `.jsonl` or `.json` file; a folder of `save_to_disk` or of data files as on the hub; or a
            hub id "owner/name", which `datasets` downloads.
        split: for a folder or hub id, needed if there are several; None for a file, which is one split.
        config: name of the configuration of a folder or hub data set that has several.

    Raises:
        ValueError: for a path that is none of these, a file with a split or config, a split that is missing, a file
            that is not JSON, or a row that is no object.
    """
    local = Path(path)
    if local.is_file() and local.suffix in FILE_SUFFIXES:
        if split is not None or config is not None:
            raise ValueError(f"{path!r} is one file, without splits; leave out split {split!r} and config {config!r}.")
        rows = _READERS[local.suffix](local)
    elif local.is_dir() or (not local.exists() and local.suffix not in FILE_SUFFIXES and _HUB_ID.fullmatch(path)):
        rows = _dataset_rows(path, split, config)
    else:
        raise ValueError(
            f"{path!r} is no table; a {', '.join(FILE_SUFFIXES)} file, a folder or a hub id owner/name is needed."
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {path!r} is a {type(row).__name__}; an object is needed.")
        yield _plain(row)


def column(row: Mapping[str, Any], name: str) -> Any:
    """Return a column that every row must have.

    Raises:
        ValueError: if it is missing, naming those that are there.
    """
    if name not in row:
        raise ValueError(f"there is no column {name!r}; the columns are {', '.join(row) or 'none'}")
    return row[name]


def map_rows(
    rows: Iterable[dict[str, Any]], to_records: Callable[[dict[str, Any]], list[dict[str, Any]]], *, path: str
) -> Iterator[dict[str, Any]]:
    """Yield the records of each row, in order.

    Raises:
        ValueError: what `to_records` says of a row (a TypeError is a part of another type than expected), after
            "row 3 of 'path'", rows counted from 1.
    """
    for number, row in enumerate(rows, start=1):
        try:
            yield from to_records(row)
        except (ValueError, TypeError) as error:
            raise ValueError(f"row {number} of {path!r}: {error}") from error
