"""From a published data set to VLM-R1's JSON Lines, row by row: `python -m vlm_entropy.data convert`."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from .loaders import LOADERS

IMAGE_FOLDER = "images"
_NAME_LENGTH = 24  # hex digits of SHA-256: 96 bits


@dataclass
class ConvertArguments:
    """Write a published data set as VLM-R1's JSON Lines, with its embedded images as files beside them."""

    source: str = field(metadata={"aliases": ["--from"], "help": "Format to read: " + ", ".join(LOADERS) + "."})
    data: str = field(metadata={"help": "File or folder of the source, or its hub id owner/name."})
    out: str = field(
        metadata={"help": "A new file .jsonl, or a folder for SPLIT.jsonl (data.jsonl without --split) and images/."}
    )
    to: Literal["vlm_r1"] = field(default="vlm_r1", metadata={"help": "Format to write."})
    images: str = field(
        default="",
        metadata={"help": "Folder that the source's image paths start from; read where boxes are fractions."},
    )
    split: str | None = field(
        default=None, metadata={"help": "Split of a source that has several. Default: all, or one."}
    )
    limit: int | None = field(default=None, metadata={"help": "Stop after this many rows, at least 1. Default: none."})


class Converted(NamedTuple):
    """What `convert` has written; `image_folder` is the one that the image paths of the rows start from."""

    path: Path
    rows: int
    images: int
    image_folder: str


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file under a temporary name, then rename it, so that a file of this name is always whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def image_name(content: bytes) -> str:
    """Return a file name for an encoded image, from its bytes alone: equal images have equal names.

    Raises:
        ValueError: for bytes that are no image.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            suffix = str(image.format).lower()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the embedded image cannot be read: {error}") from error
    return f"{hashlib.sha256(content).hexdigest()[:_NAME_LENGTH]}.{suffix}"


class _Lines:
    """Turns records into lines, writes their embedded images, and counts both."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = 0
        self.written: set[str] = set()
        self.kinds: set[type] = set()

    def _store(self, picture: str | bytes) -> str:
        self.kinds.add(type(picture))
        if len(self.kinds) > 1:
            raise ValueError("some images are paths and some are embedded; one file of rows can hold only one kind")
        if isinstance(picture, str):
            return picture
        name = image_name(picture)
        if name not in self.written:
            (self.folder / IMAGE_FOLDER).mkdir(exist_ok=True)
            write_whole(self.folder / IMAGE_FOLDER / name, [picture])
            self.written.add(name)
        return f"{IMAGE_FOLDER}/{name}"

    def line(self, record: dict[str, Any]) -> bytes:
        image = record.get("image")
        if isinstance(image, list):
            record = {**record, "image": [self._store(picture) for picture in image]}
        elif image:
            record = {**record, "image": self._store(image)}
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    def lines(self, records: Iterable[dict[str, Any]], source: str) -> Iterator[bytes]:
        for record in records:
            try:
                line = self.line(record)
            except (ValueError, TypeError) as error:
                raise ValueError(f"record {self.rows + 1} of {source!r}: {error}.") from error
            self.rows += 1
            yield line
        if not self.rows:
            raise ValueError(f"There is no row in {source!r}.")


def _target(out: str, split: str | None) -> Path:
    path = Path(out) if out.endswith(".jsonl") else Path(out, f"{split or 'data'}.jsonl")
    if path.exists():
        raise ValueError(f"{str(path)!r} exists; remove it or name another.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def convert(
    source: str, *, loader: str, out: str, split: str | None = None, images: str = "", limit: int | None = None
) -> Converted:
    """Write the records of a source as JSON Lines; embedded images become `images/*` beside the file, each once.

    Memory is constant where the loader's is. The file appears under its name when it is whole, or not at all.

    Args:
        source: file or folder, or a hub id "owner/name" where the loader says so.
        loader: a name of `LOADERS`.
        out: a file `.jsonl` that does not exist, or a folder for `{split}.jsonl`, `data.jsonl` without a split.
        split: of a source that has several.
        images: folder that the source's image paths start from; paths are copied as they are.
        limit: stop after this many rows, >= 1.

    Raises:
        ValueError: for an unknown loader, a target that exists, no rows, or the first bad row, with its place in the
            source.
    """
    if loader not in LOADERS:
        raise ValueError(f"Unknown source format {loader!r}; allowed are {', '.join(LOADERS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    path = _target(out, split)
    records = LOADERS[loader].read(source, split=split, images=images)
    lines = _Lines(path.parent)
    write_whole(path, lines.lines(islice(records, limit), source))
    image_folder = str(path.parent) if lines.written else images
    return Converted(path, lines.rows, len(lines.written), image_folder)


def run(arguments: ConvertArguments) -> str:
    """Convert as `arguments` say; return the lines to print."""
    done = convert(
        arguments.data,
        loader=arguments.source,
        out=arguments.out,
        split=arguments.split,
        images=arguments.images,
        limit=arguments.limit,
    )
    return (
        f"wrote {done.path}: {done.rows} rows, {done.images} images\n"
        f"train with --data_file_paths {done.path} --image_folders {done.image_folder!r}"
    )
