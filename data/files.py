"""VLM-R1's data files: JSON Lines, a JSON array of the same records, or a YAML list of such files to take parts of."""

import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml

SAMPLE_SEED = 42
_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")
_ENTRY_KEYS = {"json_path", "sampling_strategy"}


class RowError(ValueError):
    """The reason why one row cannot be used."""


Item = tuple[str, Any]
"""Where a record comes from ("path/file.jsonl:12"), and the record, or a RowError in its place."""


def _decode(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON: {error}.")


def _array(path: str, text: str) -> list[Any]:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The data file {path!r} is not a JSON array: {error}.") from error


def _json_items(path: str) -> Iterator[Item]:
    """Yield the lines that are not blank, or the items of an array, which is what a file is that starts with "["."""
    with open(path, encoding="utf-8-sig") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        first_number, first = next(lines, (0, ""))
        if first.lstrip().startswith("["):
            file.seek(0)
            yield from ((f"{path}:{number}", item) for number, item in enumerate(_array(path, file.read()), start=1))
        elif first:
            yield f"{path}:{first_number}", _decode(first)
            yield from ((f"{path}:{number}", _decode(line)) for number, line in lines)


def sample_indices(strategy: str, count: int, *, seed: int = SAMPLE_SEED) -> list[int]:
    """Which of `count` rows a sampling strategy of VLM-R1's YAML files keeps, in file order.

    `all`; `first:N`, `end:N` or `random:N`, where N is a number of rows or, rounded up, a percentage like `12%`.
    All rows if there are fewer than N. VLM-R1 draws without a seed, so each of its processes trains on other rows.

    Raises:
        ValueError: for any other strategy, or more than 100%.
    """
    match = _STRATEGY.fullmatch(strategy)
    if strategy == "all":
        return list(range(count))
    if match is None or (match[3] and int(match[2]) > 100):
        raise ValueError(
            f"sampling_strategy is {strategy!r}; allowed are all, first:N, end:N, random:N, N a number or up to 100%."
        )
    size = min(count, math.ceil(int(match[2]) * count / 100) if match[3] else int(match[2]))
    if match[1] == "random":
        return sorted(random.Random(seed).sample(range(count), size))
    return list(range(size) if match[1] == "first" else range(count - size, count))


def _entries(path: str) -> list[tuple[str, str]]:
    """Return (JSON file, sampling strategy) of each entry of a YAML file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"The data file {path!r} is not YAML: {error}.") from error
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path!r} needs a list `datasets:` of json_path and sampling_strategy, got {short(content)}."
        )
    pairs = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str) or entry.keys() - _ENTRY_KEYS:
            raise ValueError(f"{path!r}: {short(entry)} is no json_path with, if wanted, a sampling_strategy.")
        pairs.append((entry["json_path"], str(entry.get("sampling_strategy", "all"))))
    return pairs


def _sampled_items(path: str) -> Iterator[Item]:
    for json_path, strategy in _entries(path):
        items = list(read_items(json_path, allow_yaml=False))
        yield from (items[index] for index in sample_indices(strategy, len(items)))


def read_items(path: str, *, allow_yaml: bool = True) -> Iterator[Item]:
    """Yield the records of one data file, in order, as they are.

    Args:
        path: JSON Lines, a JSON array, or (by its suffix) YAML; paths in a YAML file are taken as they are.
        allow_yaml: False refuses YAML, as inside another YAML file.

    Raises:
        ValueError: for a file that is missing, not UTF-8, a broken array or YAML. A line that is not JSON is yielded
            as a RowError.
    """
    if not Path(path).is_file():
        raise ValueError(f"The data file {path!r} does not exist.")
    is_yaml = Path(path).suffix.lower() in {".yaml", ".yml"}
    if is_yaml and not allow_yaml:
        raise ValueError(f"The data file {path!r} is YAML inside YAML; JSON Lines or a JSON array is expected.")
    try:
        yield from _sampled_items(path) if is_yaml else _json_items(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"The data file {path!r} is not UTF-8: {error}.") from error
