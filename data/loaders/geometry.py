"""Geometry with figures: Geometry3K as InterGPS publishes it and as on the hub, and GeoQA as R1-V publishes it."""

import json
import posixpath
from collections.abc import Iterator, Mapping
from os.path import relpath
from pathlib import Path, PurePath, PurePosixPath
from reprlib import repr as short
from typing import Any
from zipfile import ZipFile, is_zipfile

from .records import Picture, Record, as_text, make_record, with_ids, without_tags
from .tables import column, map_rows, read_table

LETTERS = "ABCD"
DATA, FIGURE = "data.json", "img_diagram.png"


def geometry3k_record(data: Mapping[str, Any], *, problem_id: str, image: Picture) -> Record:
    r"""Turn the `data.json` of one problem of InterGPS' Geometry3K into a record with a free-form answer.

    The data   {"annotat_text": "Find $y$.", "choices": ["15", "16", "5 \\sqrt { 3 }", "17"], "answer": "C",
                "precise_value": [15.0, 16.0, 8.66, null], "problem_type_graph": ["Triangle"], ...}
    becomes    {"id": "2401", "image": "test/2401/img_diagram.png", "choice": "C",
                "choices": ["15", "16", "5 \\sqrt { 3 }", "17"], "precise_value": [15.0, 16.0, 8.66, null],
                "conversations": [{"from": "human", "value": "<image>Find $y$."},
                                  {"from": "gpt", "value": "5 \\sqrt { 3 }"}]}
    `choice` and `choices` are for the multiple-choice protocol, `precise_value` (a number or null per choice) for
    InterGPS' nearest value.

    Raises:
        ValueError: for an answer that is no letter from A to D, or choices that are not four.
    """
    letter, choices = column(data, "answer"), column(data, "choices")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise ValueError(f"choices is {short(choices)}; a list of four is needed")
    if not isinstance(letter, str) or len(letter) != 1 or letter not in LETTERS:
        raise ValueError(f"answer is {short(letter)}; a letter from A to D is needed")
    return make_record(
        column(data, "annotat_text"),
        choices[LETTERS.index(letter)],
        image=image,
        id=problem_id,
        choice=letter,
        choices=choices,
        precise_value=column(data, "precise_value"),
    )


def _in_order(files: list[PurePath]) -> list[PurePath]:
    """Sort data.json files by split and by the number that names their folder."""
    return sorted(files, key=lambda file: (file.parts[-3:-2], len(file.parent.name), file.parent.name))


def _folder_problems(folder: Path, split: str | None, images: str) -> Iterator[tuple[str, bytes, Picture | None]]:
    """Yield (id, data.json, path of the figure relative to `images`) of each problem."""
    for file in map(Path, _in_order(list(folder.glob(f"{split or '*'}/*/{DATA}")))):
        figure = file.with_name(FIGURE)
        shown = relpath(figure, images) if images else str(figure)
        yield file.parent.name, file.read_bytes(), shown if figure.is_file() else None


def _zip_problems(path: Path, split: str | None) -> Iterator[tuple[str, bytes, Picture | None]]:
    """Yield (id, data.json, bytes of the figure) of each problem; train.zip may hold the problems without `train/`."""
    with ZipFile(path) as archive:
        names = set(archive.namelist())
        files = [PurePosixPath(name) for name in names if PurePosixPath(name).name == DATA]
        for file in _in_order([file for file in files if split in (None, file.parent.parent.name or path.stem)]):
            figure = str(file.with_name(FIGURE))
            yield file.parent.name, archive.read(str(file)), archive.read(figure) if figure in names else None


def _decoded(data: bytes, image: Picture | None) -> tuple[dict[str, Any], Picture]:
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError(f"{DATA} is {short(content)}; an object is needed")
    if image is None:
        raise ValueError(f"there is no {FIGURE} beside {DATA}")
    return content, image


def read_geometry3k(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of InterGPS' Geometry3K, sorted by split and number; see `geometry3k_record`.

    Args:
        path: the folder that holds {split}/{id}/data.json and img_diagram.png, or a zip file of it. From a folder an
            image is a path, from a zip file its bytes; nothing is unpacked.
        split: train (2 101 problems), val (300) or test (601); None for all that are there.
        images: folder that the image paths shall be relative to, such as `path`; "" keeps `path` in them.

    Raises:
        ValueError: for a path that holds no problem of the split, and the first problem that cannot be used.
    """
    source = Path(path)
    if not source.is_dir() and not is_zipfile(source):
        raise ValueError(f"{path!r} is neither a folder nor a zip file of Geometry3K.")
    found = False
    for problem_id, data, image in (
        _folder_problems(source, split, images) if source.is_dir() else _zip_problems(source, split)
    ):
        found = True
        try:
            content, figure = _decoded(data, image)
            yield geometry3k_record(content, problem_id=problem_id, image=figure)
        except ValueError as error:
            raise ValueError(f"problem {problem_id} of {path!r}: {error}") from error
    if not found:
        raise ValueError(f"{path!r} holds no {split or 'split'}/{{id}}/{DATA}.")


def geometry3k_hf_record(row: Mapping[str, Any]) -> Record:
    """Turn a row of hiyouga/geometry3k into a record; `choices` and `choice` are there where the source has them.

    The row    {"images": [b"..."], "problem": "<image>Find $y$.", "answer": "16", "id": 7,
                "choices": ["15", "16", "17", "18"], "ground_truth": "B"}
    becomes    {"id": 7, "image": b"...", "choices": ["15", "16", "17", "18"], "choice": "B",
                "conversations": [{"from": "human", "value": "<image>Find $y$."}, {"from": "gpt", "value": "16"}]}
    """
    names = {"id": "id", "choices": "choices", "ground_truth": "choice"}
    columns = {ours: row[theirs] for theirs, ours in names.items() if theirs in row}
    return make_record(column(row, "problem"), column(row, "answer"), image=column(row, "images"), **columns)


def read_geometry3k_hf(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of hiyouga/geometry3k, the free-form copy on the hub; see `geometry3k_hf_record`.

    Args:
        path, split: as in `read_table`; the splits are train, validation and test.
        images: not used; the images are in the table.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [geometry3k_hf_record(row)], path=path))


def geoqa_r1v_record(row: Mapping[str, Any]) -> Record:
    """Turn a row of R1-V's GeoQA, of its training set or its test prompts, into a record.

    The row    {"image": b"...", "problem": "Find angle A.", "solution": "<answer> 145° </answer>"}
    becomes    {"image": b"...", "conversations": [{"from": "human", "value": "<image>Find angle A."},
                                                   {"from": "gpt", "value": "145°"}]}
    and        {"image_path": "./Geo170K/images/test/0.png", "question": "Find angle A.", "ground_truth": "140°"}
    becomes the same with the image "Geo170K/images/test/0.png" and the answer "140°". The degree sign stays.
    """
    if "ground_truth" in row:
        image = posixpath.normpath(as_text(column(row, "image_path"), "image_path"))
        return make_record(column(row, "question"), column(row, "ground_truth"), image=image)
    answer = without_tags(column(row, "solution"), "solution")
    return make_record(column(row, "problem"), answer, image=column(row, "image"))


def read_geoqa_r1v(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of leonardPKU/GEOQA_R1V_Train_8K, or of R1-V's geoqa_test_prompts.jsonl (754 lines).

    Args:
        path, split: as in `read_table`.
        images: not used; the training images are in the table, the paths of the test images stay as they are.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [geoqa_r1v_record(row)], path=path))
