"""Shared by the tests of the loaders: small files to read, and the turns of a record."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def answers(records: Any) -> list[str]:
    return [record["conversations"][1]["value"] for record in records]


def lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def png(width: int = 4, height: int = 4, **options: Any) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG", **options)
    return file.getvalue()


def embedded(image: bytes) -> dict[str, Any]:
    return {"bytes": image, "path": None}
