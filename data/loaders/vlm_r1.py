"""VLM-R1's own files: training data as it is, and its evaluation arrays for RefCOCO, RefGTA and LISA-Grounding."""

from collections.abc import Callable, Iterator, Mapping
from reprlib import repr as short
from typing import Any

from vlm_entropy.data.files import RowError, read_items

from .boxes import from_xyxy
from .records import Record
from .tables import column


def vlm_r1_record(row: Mapping[str, Any]) -> Record:
    """Return the row, with `conversations` made of `problem` and `solution` where it has none.

    The row    {"image": "a.jpg", "problem": "Where is the cat?", "solution": [1, 2, 3, 4], "normal_caption": "cat"}
    becomes    {"image": "a.jpg", "normal_caption": "cat",
                "conversations": [{"from": "human", "value": "<image>Where is the cat?"},
                                  {"from": "gpt", "value": [1, 2, 3, 4]}]}

    Raises:
        ValueError: for a row with neither, or a problem that is no text.
    """
    if "conversations" in row:
        return dict(row)
    if not {"problem", "solution"} <= row.keys():
        raise ValueError(f"there is neither conversations nor problem and solution in {short(dict(row))}")
    problem, solution = row["problem"], row["solution"]
    if not isinstance(problem, str):
        raise ValueError(f"problem is {short(problem)}; a text is needed")
    mark = "<image>" if row.get("image") and "<image>" not in problem else ""
    turns = [{"from": "human", "value": mark + problem}, {"from": "gpt", "value": solution}]
    others = {name: value for name, value in row.items() if name not in ("problem", "solution")}
    return {**others, "conversations": turns}


def vlm_r1_eval_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a row of VLM-R1's evaluation arrays; all its columns are kept.

    The row    {"id": 3, "image": "a.jpg", "problem": "Where is the cat?", "solution": [64, 48, 320, 240],
                "normalized_solution": [100, 100, 500, 500], "width": 640, "height": 480}
    becomes    {"id": 3, "image": "a.jpg", "normalized_solution": [100, 100, 500, 500], "width": 640, "height": 480,
                "conversations": [{"from": "human", "value": "<image>Where is the cat?"},
                                  {"from": "gpt", "value": [64, 48, 320, 240]}]}

    Raises:
        ValueError: for a solution that is no xyxy box, or that is in thousandths, as in the files for InternVL.
    """
    box = from_xyxy(column(row, "solution"), "solution")
    size = (row.get("width"), row.get("height"))
    if row.get("normalized_solution") == row["solution"] and size != (1000, 1000):
        raise ValueError(f"solution {box} equals normalized_solution; pixels are needed, not the files for InternVL")
    others = {name: value for name, value in row.items() if name != "conversations"}
    return vlm_r1_record({**others, "solution": box})


def _records(path: str, split: str | None, to_record: Callable[[Mapping[str, Any]], Record]) -> Iterator[Record]:
    if split is not None:
        raise ValueError(f"{path!r} has no splits; leave out split {split!r}.")
    for source, row in read_items(path):
        try:
            if isinstance(row, RowError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"the row is {short(row)}; a JSON object is needed")
            record = to_record(row)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        yield record


def read_vlm_r1(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Return the rows of a JSON Lines, JSON array or YAML file as they are; see `vlm_r1_record`.

    Raises:
        ValueError: for a file that cannot be read, a split, or a bad row, with its line.
    """
    return _records(path, split, vlm_r1_record)


def read_vlm_r1_eval(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Return the rows of `refcoco_val.json`, `lisa_test.json` and their like; see `vlm_r1_eval_record`.

    Raises:
        ValueError: for a file that cannot be read, a split, or a bad row, with its place in the array.
    """
    return _records(path, split, vlm_r1_eval_record)
