"""Images inside a report: small copies as data URIs, up to a limit for the whole file."""

import base64
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

LONGEST_SIDE = 448
"""Pixels of an embedded picture at most."""
TOTAL = 6 * 2**20
"""Bytes of all embedded pictures at most, as they stand in the file."""


@dataclass(frozen=True)
class Picture:
    """An image of a report, or why it is not there."""

    uri: str | None
    width: int = 1
    height: int = 1
    """Of the upright image on disk, in pixels."""
    problem: str | None = None

    @cached_property
    def is_tiny(self) -> bool:
        return max(self.width, self.height) <= 128


@dataclass
class Album:
    """The pictures of one report, each file once."""

    known: dict[str, Picture] = field(default_factory=dict)
    size: int = 0

    def add(self, path: str | Path) -> Picture:
        """The picture of a file; one without `uri` if it cannot be read or the report has grown too large."""
        if (key := str(path)) not in self.known:
            self.known[key] = self._read(Path(path))
        return self.known[key]

    def _read(self, path: Path) -> Picture:
        try:
            with Image.open(path) as image:
                width, height = ImageOps.exif_transpose(image).size
                encoded, kind = encode(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            return Picture(None, problem=f"The image {path.name} {reason}.")
        uri = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
        if self.size + len(uri) > TOTAL:
            return Picture(None, problem=f"The image {path.name} is left out to keep this file small.")
        self.size += len(uri)
        return Picture(uri, width, height)


def encode(image: Image.Image) -> tuple[bytes, str]:
    """A copy of at most `LONGEST_SIDE` pixels a side: PNG for tiny images and JPEG for others, and which of them."""
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kind = "png" if max(small.size) <= 128 else "jpeg"
    file = BytesIO()
    small.save(file, format=kind, quality=82, optimize=True)
    return file.getvalue(), kind
