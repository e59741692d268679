"""Shared by the tests of the synthetic tasks: what lies in the folder that a task wrote."""

import json
from pathlib import Path

from PIL import Image


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def question(row: dict) -> str:
    return row["conversations"][0]["value"].removeprefix("<image>")


def answer(row: dict) -> str:
    return row["conversations"][1]["value"]


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pictures(folder: Path) -> list[bytes]:
    return [Image.open(path).tobytes() for path in sorted((folder / "images").iterdir())]
