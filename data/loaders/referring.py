"""Referring expressions in later formats: Qwen-VL's JSON Lines, lmms-lab's tables, LISA's ReasonSeg folders."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .boxes import around, from_xywh, from_xyxy
from .records import Picture, Record, kept_columns, make_record, with_ids
from .refer import REC_QUESTION
from .tables import column, map_rows, read_table
from .vlm_r1 import read_vlm_r1_eval


def qwen_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a line of Qwen-VL's and InternVL's files.

    The row    {"image": "coco/train2014/a.jpg", "sent": "the cat", "bbox": [1.5, 2, 3, 4], "width": 640,
                "height": 480}
    becomes    {"width": 640, "height": 480, "normal_caption": "the cat", "image": "coco/train2014/a.jpg",
                "conversations": [{"from": "human", "value": "<image>Please provide ... describes: the cat"},
                                  {"from": "gpt", "value": "[1.5, 2, 3, 4]"}]}

    Raises:
        ValueError: for a missing column or four numbers that are no xyxy box.
    """
    sentence = column(row, "sent")
    return make_record(
        REC_QUESTION.format(sentence),
        json.dumps(from_xyxy(column(row, "bbox"))),
        image=column(row, "image"),
        **kept_columns(row, ("id", "width", "height")),
        normal_caption=sentence,
    )


def read_qwen_jsonl(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of `refcoco_val.jsonl` and its like; see `qwen_record`. `id` is the place, from 0.

    Raises:
        ValueError: as `read_table` says, or for a bad row, with its place counted from 1.
    """
    rows = read_table(path, split=split)
    return with_ids(map_rows(rows, lambda row: [qwen_record(row)], path=path))


def lmms_refcoco_records(row: Mapping[str, Any]) -> list[Record]:
    """Return one record per expression of a row of lmms-lab's tables; the segmentation is dropped.

    The row    {"question_id": "4", "image": b"...", "question": "Please ...", "answer": ["the cat", "left cat"],
                "segmentation": [...], "bbox": [10, 20, 30, 40], "iscrowd": 0, "file_name": "a_4.jpg"}
    becomes    [{"id": "4-0", "question_id": "4", "iscrowd": 0, "file_name": "a_4.jpg", "normal_caption": "the cat",
                 "image": b"...", "conversations": [{"from": "human", "value": "<image>Please ... describes: the cat"},
                                                    {"from": "gpt", "value": "[10, 20, 40, 60]"}]}, ...]

    Raises:
        ValueError: for a missing column, no expression, or four numbers that are no xywh box.
    """
    box = json.dumps(from_xywh(column(row, "bbox")))
    expressions = column(row, "answer")
    if not isinstance(expressions, list) or not expressions:
        raise ValueError(f"answer is {expressions!r}; a list of expressions is needed")
    shared = kept_columns(row, ("question_id", "iscrowd", "file_name"))
    return [
        make_record(
            REC_QUESTION.format(expression),
            box,
            image=column(row, "image"),
            id=f"{column(row, 'question_id')}-{number}",
            **shared,
            normal_caption=expression,
        )
        for number, expression in enumerate(expressions)
    ]


def is_mixed_split(path: str, split: str | None) -> bool:
    """Whether a split of lmms-lab's tables holds, also or only, references of the google split.

    `val` of RefCOCO has 8811 rows = 3811 of unc + 5000 of google, `val` of RefCOCOg 7573 = 2573 of umd + 5000, and
    `test` of RefCOCO is google's alone. Their images are in the unc training split. testA, testB and RefCOCOg's test
    are the published ones. A table in one file has its split in its name, `val-00000-of-00002.parquet`.
    """
    name = split or re.split(r"[-.]", Path(path).name)[0]
    return name in ("val", "validation") or (name == "test" and "refcocog" not in path.lower())


def read_lmms_refcoco(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of lmms-lab/RefCOCO, RefCOCOplus or RefCOCOg; see `lmms_refcoco_records`.

    Warns (UserWarning) of a split with references of the google split, see `is_mixed_split`.

    Raises:
        ValueError: as `read_table` says, or for a bad row, with its place counted from 1.
    """
    if is_mixed_split(path, split):
        warnings.warn(
            f"This split of {path!r} holds the google split, whose images overlap the unc training split: no number "
            "on it compares with published ones. testA, testB and RefCOCOg's test do.",
            stacklevel=2,
        )
    return map_rows(read_table(path, split=split), lmms_refcoco_records, path=path)


def reason_seg_records(annotation: Mapping[str, Any], *, image: Picture, row_id: str) -> list[Record]:
    """Return one record per text of a ReasonSeg annotation: the box around all its target polygons.

    The annotation of "7.jpg"
        {"text": ["the thing that purrs"], "is_sentence": true,
         "shapes": [{"label": "target", "points": [[10, 20], [40, 20], [40, 60]]}, {"label": "ignore", "points": []}]}
    becomes
        [{"id": "7-0", "is_sentence": true, "normal_caption": "the thing that purrs", "image": "7.jpg",
          "conversations": [{"from": "human", "value": "<image>Please ... describes: the thing that purrs"},
                            {"from": "gpt", "value": "[10, 20, 40, 60]"}]}]

    Raises:
        ValueError: for a missing column, no target, or points that are no polygon.
    """
    shapes = column(annotation, "shapes")
    targets = [column(shape, "points") for shape in shapes if column(shape, "label") == "target"]
    polygon = [coordinate for points in targets for point in points for coordinate in point]
    box = json.dumps(around(polygon, "the target"))
    return [
        make_record(
            REC_QUESTION.format(text),
            box,
            image=image,
            id=f"{row_id}-{number}",
            **kept_columns(annotation, ("is_sentence",)),
            normal_caption=text,
        )
        for number, text in enumerate(column(annotation, "text"))
    ]


def _read_annotation(path: Path) -> dict[str, Any]:
    """Return a ReasonSeg annotation; some of the published files are Windows-1252, the others UTF-8."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
    return json.loads(text)


def _reason_seg(folder: Path, split: str | None) -> Iterator[Record]:
    folder = folder / split if split else folder
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"{str(folder)!r} holds no annotation x.json beside an image x.jpg.")
    for file in files:
        try:
            records = reason_seg_records(_read_annotation(file), image=f"{file.stem}.jpg", row_id=file.stem)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(file)!r}: {error}") from error
        yield from records


def read_lisa_grounding(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Return the rows of VLM-R1's `lisa_test.json`, or of a folder of ReasonSeg, made into boxes.

    Args:
        path: the file (see `vlm_r1.vlm_r1_eval_record`), or a folder of x.json beside x.jpg (`reason_seg_records`).
        split: sub-folder of a folder, train, val or test; None if `path` is that folder.
        images: not read.

    Raises:
        ValueError: for a file or folder that cannot be read, or a bad row, with its place.
    """
    if Path(path).is_dir():
        return _reason_seg(Path(path), split)
    return read_vlm_r1_eval(path, split=split, images=images)
