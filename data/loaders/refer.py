"""RefCOCO, RefCOCO+, RefCOCOg and RefGTA as first published: a pickle of references beside `instances.json`.

A pickle is a program. This one may only build lists, tuples, dicts, texts and numbers: a name of any other thing
stops the reading before it is looked up, so nothing of the file is ever called.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO, NoReturn

from .boxes import from_xywh
from .records import Record, make_record
from .tables import column

REC_QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""VLM-R1's and InternVL's wording."""
_PICKLE_FAULTS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
)


class PlainUnpickler(pickle.Unpickler):
    """Builds plain data; refuses every class and function by name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; only lists, tuples, dicts, texts and numbers are allowed, nothing was run"
        )


def read_plain_pickle(file: BinaryIO, name: str) -> Any:
    """Return what a pickle of plain data holds; texts of Python 2 are read as Latin-1.

    Raises:
        ValueError: for a pickle of anything else, or a broken one.
    """
    try:
        return PlainUnpickler(file, encoding="latin1").load()
    except _PICKLE_FAULTS as error:
        raise ValueError(f"The pickle {name!r} is refused: {error}.") from error


def _refs_file(path: str) -> Path:
    """Return the file itself, or the one `refs(*).p` of a folder."""
    if Path(path).is_file():
        return Path(path)
    files = sorted(Path(path).glob("refs(*).p"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{path!r} needs to be a file refs(...).p, or a folder with one; there: {names}.")
    return files[0]


def refer_records(
    ref: Mapping[str, Any],
    *,
    boxes: Mapping[int, Any],
    file_names: Mapping[int, str],
    categories: Mapping[int, str],
) -> list[Record]:
    """Return one record per sentence of a reference.

    The reference {"ref_id": 5, "ann_id": 7, "category_id": 17, "image_id": 9, "split": "val", "sent_ids": [11],
                   "file_name": "COCO_train2014_000000000009_7.jpg", "sentences": [{"sent_id": 11, "sent": "the cat",
                   "raw": "The cat", "tokens": ["the", "cat"]}]}
    with the box of annotation 7, [10.5, 20, 30, 40] as xywh, becomes
        [{"id": 11, "ref_id": 5, "ann_id": 7, "category": "cat", "split": "val", "normal_caption": "the cat",
          "image": "COCO_train2014_000000000009.jpg",
          "conversations": [{"from": "human", "value": "<image>Please provide the bounding box coordinate of the region
                                                        this sentence describes: the cat"},
                            {"from": "gpt", "value": "[10.5, 20, 40.5, 60]"}]}]

    The reference's own `file_name` names no file; the image is found by `image_id`.

    Args:
        ref: one reference.
        boxes: xywh in pixels of the stored image, by `ann_id`.
        file_names: by `image_id`.
        categories: names by `category_id`.

    Raises:
        ValueError: for a missing column, an id that is nowhere, or four numbers that are no box.
    """
    ann_id, image_id = column(ref, "ann_id"), column(ref, "image_id")
    if ann_id not in boxes or image_id not in file_names:
        raise ValueError(f"annotation {ann_id} or image {image_id} is not in instances.json")
    box = json.dumps(from_xywh(boxes[ann_id]))
    shared = {
        "ref_id": column(ref, "ref_id"),
        "ann_id": ann_id,
        "category": categories.get(column(ref, "category_id")),
        "split": column(ref, "split"),
    }
    return [
        make_record(
            REC_QUESTION.format(column(sentence, "sent")),
            box,
            image=file_names[image_id],
            id=column(sentence, "sent_id"),
            **shared,
            normal_caption=sentence["sent"],
        )
        for sentence in column(ref, "sentences")
    ]


def _instances(path: Path) -> dict[str, Any]:
    """Return the look-up tables that `refer_records` needs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            "boxes": {item["id"]: item["bbox"] for item in content["annotations"]},
            "file_names": {item["id"]: item["file_name"] for item in content["images"]},
            "categories": {item["id"]: item["name"] for item in content.get("categories", [])},
        }
    except FileNotFoundError:
        raise ValueError(f"{str(path)!r} does not exist; it must stand beside the references.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no COCO instances file: {error!r}.") from error


def read_refer(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield one record per sentence, in the order of the references.

    Args:
        path: `refcoco/refs(unc).p`, or its folder if it holds one such file; `instances.json` stands beside it.
        split: train, val, testA, ...; None for all.
        images: not read; the folder of COCO's train2014 images, or of RefGTA's.

    Raises:
        ValueError: for a file that is missing or refused, a split that no reference has, or a bad reference, with its
            place counted from 1.
    """
    file = _refs_file(path)
    with file.open("rb") as stream:
        refs = read_plain_pickle(stream, str(file))
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{str(file)!r} holds {short(refs)}; a list of references is needed.")
    splits = sorted({str(ref.get("split")) for ref in refs})
    if split is not None and split not in splits:
        raise ValueError(f"{str(file)!r} has the splits {', '.join(splits)}; split is {split!r}.")
    tables = _instances(file.with_name("instances.json"))
    for number, ref in enumerate(refs, start=1):
        if split is None or ref.get("split") == split:
            try:
                yield from refer_records(ref, **tables)
            except (ValueError, TypeError) as error:
                raise ValueError(f"reference {number} of {str(file)!r}: {error}") from error
