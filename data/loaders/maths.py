"""Maths and science with images: ViRL39K, CalibRL's part of it with expert solutions, MMK12 and MathVista."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .records import Record, as_text, kept_columns, make_record, with_ids
from .tables import column, map_rows, read_table

VIRL39K_FILE = "39Krelease.parquet"


def unboxed(text: str) -> str:
    r"""Return what is inside `\boxed{...}` if that is the whole text: "\boxed{\frac{1}{2}}" is "\frac{1}{2}".

    Any other text comes back as it is, also "\boxed{1} or \boxed{2}".
    """
    stripped = text.strip()
    if not stripped.startswith(r"\boxed{") or not stripped.endswith("}"):
        return text
    inner = stripped.removeprefix(r"\boxed{").removesuffix("}")
    depth = 0
    for character in inner:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return text
    return inner


def expert_text(solution: Any) -> str | None:
    """Return an expert's solution, a text or a message or the first of a list of messages; None if there is none."""
    first = solution[0] if isinstance(solution, list) and solution else solution
    content = first.get("content") if isinstance(first, dict) else first
    if content is None or content == []:
        return None
    return as_text(content, "solution")


def virl39k_record(row: Mapping[str, Any]) -> Record:
    r"""Turn a row of TIGER-Lab/ViRL39K, with or without an expert's `solution`, into a record.

    The row    {"question": "<image>Find x.", "answer": "\\boxed{60}", "PassRate_32BTrained": 0.5,
                "PassRate_7BBase": 0.25, "category": "(GradeSchool) Geometric", "source": "MMMath", "qid": "MMMath-1",
                "image": ["images/MMMath-1-0.jpg"], "solution": "<think>...</think>"}
    becomes    {"id": "MMMath-1", "image": "images/MMMath-1-0.jpg", "PassRate_32BTrained": 0.5,
                "PassRate_7BBase": 0.25, "category": "(GradeSchool) Geometric", "source": "MMMath",
                "expert": "<think>...</think>",
                "conversations": [{"from": "human", "value": "<image>Find x."}, {"from": "gpt", "value": "60"}]}
    """
    columns = kept_columns(row, ("PassRate_32BTrained", "PassRate_7BBase", "category", "source"))
    if "solution" in row:
        columns["expert"] = expert_text(row["solution"])
    answer = unboxed(as_text(column(row, "answer"), "answer"))
    return make_record(column(row, "question"), answer, image=column(row, "image"), id=column(row, "qid"), **columns)


def calibrl_record(row: Mapping[str, Any]) -> Record:
    """Turn a row in verl's layout, as CalibRL trains on, into a record; its system message is dropped.

    The row    {"prompt": [{"role": "user", "content": "<image>Find x."}], "images": [b"..."],
                "reward_model": {"ground_truth": "60", "style": "rule"}, "solution": "<think>...</think>",
                "data_source": "virl"}
    becomes    {"image": b"...", "data_source": "virl", "expert": "<think>...</think>",
                "conversations": [{"from": "human", "value": "<image>Find x."}, {"from": "gpt", "value": "60"}]}

    Raises:
        ValueError: for a prompt without exactly one user message, or a reward_model without ground_truth.
    """
    prompt, reward_model = column(row, "prompt"), column(row, "reward_model")
    messages = prompt if isinstance(prompt, list) else []
    users = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    if len(users) != 1:
        raise ValueError(f"prompt is {short(prompt)}; a list with one user message is needed")
    if not isinstance(reward_model, dict):
        raise ValueError(f"reward_model is {short(reward_model)}; an object with ground_truth is needed")
    answer = unboxed(as_text(column(reward_model, "ground_truth"), "ground_truth"))
    columns = kept_columns(row, ("data_source", "pass_ratio"))
    if "solution" in row:
        columns["expert"] = expert_text(row["solution"])
    return make_record(users[0].get("content"), answer, image=row.get("images"), **columns)


def read_virl39k(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of ViRL39K, or of CalibRL's parquet file; see `virl39k_record` and `calibrl_record`.

    Args:
        path: the parquet file, or the folder that holds 39Krelease.parquet. (As a data set, `datasets` would take
            that folder, or the hub id, for a folder of images and lose the questions.)
        split: None; there is one.
        images: not used; the image paths, images/{qid}-0.jpg, stay as they are.
    """
    file = Path(path, VIRL39K_FILE)
    rows = read_table(str(file) if file.is_file() else path, split=split)

    def records(row: dict[str, Any]) -> list[Record]:
        return [calibrl_record(row) if "prompt" in row else virl39k_record(row)]

    return with_ids(map_rows(rows, records, path=path))


def mmk12_record(row: Mapping[str, Any]) -> Record:
    r"""Turn a row of FanqingM/MMK12 into a record: free-form answers in `train`, letters in `test`.

    The row    {"id": "a1", "question": "<image>Which gas?\nA. O2\nB. N2", "answer": "B", "subject": "chemistry",
                "image": b"..."}
    becomes    {"id": "a1", "image": b"...", "subject": "chemistry",
                "conversations": [{"from": "human", "value": "<image>Which gas?\nA. O2\nB. N2"},
                                  {"from": "gpt", "value": "B"}]}
    """
    columns = kept_columns(row, ("id", "subject"))
    return make_record(column(row, "question"), column(row, "answer"), image=column(row, "image"), **columns)


def read_mmk12(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of MMK12; see `mmk12_record`.

    Args:
        path: as in `read_table`.
        split: train (15 616 rows) or test (2 000, 500 of each subject); None for a file.
        images: not used; the images are in the table.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [mmk12_record(row)], path=path))


def mathvista_record(row: Mapping[str, Any]) -> Record:
    r"""Turn a row of AI4Math/MathVista into a record. The question is `query`; `precision`, a float there, is an int.

    The row    {"pid": "1", "query": "Hint: ...\nQuestion: How long?", "question": "How long?",
                "image": "images/1.jpg", "decoded_image": b"...", "choices": None, "unit": None, "precision": 1.0,
                "answer": "1.2", "question_type": "free_form", "answer_type": "float",
                "metadata": {"split": "testmini", ...}}
    becomes    {"id": "1", "image": b"...", "question": "How long?", "choices": None, "unit": None, "precision": 1,
                "question_type": "free_form", "answer_type": "float", "metadata": {"split": "testmini", ...},
                "conversations": [{"from": "human", "value": "<image>Hint: ...\nQuestion: How long?"},
                                  {"from": "gpt", "value": "1.2"}]}
    Without a `decoded_image` the image is the path.

    Raises:
        ValueError: for a row without an answer, as all of the split `test`, or a precision that is no whole number.
    """
    precision = column(row, "precision")
    if precision is not None and (type(precision) not in (int, float) or precision % 1 != 0):
        raise ValueError(f"precision is {short(precision)}; a whole number or nothing is needed")
    names = ("question", "choices", "unit", "question_type", "answer_type", "metadata")
    image = row.get("decoded_image") or column(row, "image")
    return make_record(
        column(row, "query"),
        column(row, "answer"),
        image=image,
        id=column(row, "pid"),
        precision=None if precision is None else int(precision),
        **kept_columns(row, names),
    )


def read_mathvista(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of MathVista; see `mathvista_record`.

    Args:
        path: as in `read_table`.
        split: testmini (1 000 rows); `test` has no answers, so it is refused. None for a file.
        images: not used; paths, images/{pid}.jpg, stay as they are.
    """
    return map_rows(read_table(path, split=split), lambda row: [mathvista_record(row)], path=path)
