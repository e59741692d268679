"""Visual-RFT's validation sets of classes: val_data/oxford_flowers.pth with the class names in oxford_flowers.txt.

A .pth is a pickle, and a pickle is a program. PyTorch's reader of weights builds tensors and plain data only and
refuses every other name, so nothing of the file is ever called. https://github.com/Liuziyu77/Visual-RFT
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from typing import Any

from .records import Record, as_text, make_record, with_ids
from .tables import column, map_rows, read_table

QUESTION = "What is shown in the image? Answer with the name of its class."
"""Ours, the data has none; the evaluation asks in Visual-RFT's words."""


def class_names(path: Path) -> list[str]:
    """Return the class names of a .txt file, a line each; the first is that of label 0."""
    return [line.strip() for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def class_name(label: Any, names: list[str]) -> str:
    """Return the name of a label, which is a name or a number.

    Raises:
        ValueError: for a number without a name, or anything else.
    """
    if type(label) is not int:
        return as_text(label, "label")
    if not 0 <= label < len(names):
        raise ValueError(
            f"label is {label}; the names are those of 0 to {len(names) - 1}, a line each in the .txt file"
        )
    return names[label]


def class_record(row: Mapping[str, Any], names: list[str]) -> Record:
    """Turn a row into a record.

    The row    {"image": "image_06765.jpg", "label": 1}    or    {"image": "image_06765.jpg", "label": "king protea"}
    with the names ["pink primrose", "king protea"] becomes
        {"image": "image_06765.jpg", "conversations": [{"from": "human", "value": "<image>What is shown in the image?
         Answer with the name of its class."}, {"from": "gpt", "value": "king protea"}]}
    """
    image = as_text(column(row, "image"), "image")
    return make_record(QUESTION, class_name(column(row, "label"), names), image=image)


def read_pth(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .pth file, the image by its name without the folder on the author's machine.

    The entry {"/home/me/oxford_flowers/jpg/image_06765.jpg": {"label": tensor(1)}}
    becomes   {"image": "image_06765.jpg", "label": 1}

    Raises:
        ValueError: for a file that holds more than tensors and plain data, is broken, or is no list of such entries.
    """
    import torch

    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is refused, nothing was run: {str(error).strip()[:200]}. A JSON Lines file of image and "
            "label is read too."
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{str(path)!r} holds {short(entries)}; a list of {{path: {{'label': number}}}} is needed.")
    for image, content in (pair for entry in entries for pair in entry.items()):
        label = content.get("label") if isinstance(content, dict) else None
        if isinstance(label, torch.Tensor) and label.numel() == 1:
            label = label.item()
        yield {"image": PurePosixPath(as_text(image, "path")).name, "label": label}


def read_visual_rft_val(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of a validation set of Visual-RFT; see `class_record`.

    Args:
        path: the .pth file with the .txt file of the same name beside it; or a table (see `read_table`) of `image` and
            `label`, a name, or a number with such a .txt file.
        split: None for a file, which is one split.
        images: not used; the paths are names of files in the folder of the images (jpg, images, cars_test).

    Raises:
        ValueError: for a file without its .txt file, a split of a .pth file, and what `read_pth` and `class_record`
            raise, with the number of the row.
    """
    file, names_file = Path(path), Path(path).with_suffix(".txt")
    names = class_names(names_file) if names_file.is_file() else []
    if file.suffix != ".pth":
        rows: Iterator[dict[str, Any]] = read_table(path, split=split)
    elif split is not None or not names:
        raise ValueError(f"{path!r} is one split, with its class names in {names_file.name}; split is {split!r}.")
    else:
        rows = read_pth(file)
    return with_ids(map_rows(rows, lambda row: [class_record(row, names)], path=path))
