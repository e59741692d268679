"""What the preflight says of rows, images and lengths: sections of short lines, with what must be mended first."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from vlm_entropy.data.families import Family, QwenFamily
from vlm_entropy.data.image_files import is_whole
from vlm_entropy.data.rows import BadRow, Row
from vlm_entropy.rewards.geometry import Size

SHOWN_BAD_ROWS = 20
SHOWN_SOURCES = 5


@dataclass
class Section:
    """A part of the report. Failures stop training, warnings do not."""

    title: str
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def percentile(values: Iterable[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); share in (0, 1]."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[int]) -> str:
    """Smallest, median, 95th percentile and largest value, in words."""
    return f"min {min(values)}, median {percentile(values, 0.5)}, 95 % {percentile(values, 0.95)}, max {max(values)}"


def listed(sources: Sequence[str], limit: int = SHOWN_SOURCES) -> str:
    """The first sources and how many more there are: "a.jsonl:1, a.jsonl:7 and 3 more"."""
    more = f" and {len(sources) - limit} more" if len(sources) > limit else ""
    return ", ".join(sources[:limit]) + more


def rows_of(count: int) -> str:
    """The number of rows, in words: "1 row", "2 rows"."""
    return f"{count} row" if count == 1 else f"{count} rows"


def rows_section(rows: Sequence[Row], bad_rows: Sequence[BadRow]) -> Section:
    """How many rows can be used, why the others cannot, and how many images a row has."""
    section = Section("Rows", [f"rows: {len(rows) + len(bad_rows)}, bad ones: {len(bad_rows)}"])
    section.lines += [f"bad: {row.source}: {row.reason}" for row in bad_rows[:SHOWN_BAD_ROWS]]
    if len(bad_rows) > SHOWN_BAD_ROWS:
        section.lines.append(f"bad: {len(bad_rows) - SHOWN_BAD_ROWS} more")
    for images, count in sorted(Counter(len(row.images) for row in rows).items()):
        what = {0: "text only", 1: "1 image"}.get(images, f"{images} images")
        section.lines.append(f"{what}: {rows_of(count)}")
    if bad_rows:
        section.failures.append(f"rows that cannot be used: {len(bad_rows)}")
    return section


class ImageFile(NamedTuple):
    """SHA-256 of the file's bytes, and whether its EXIF orientation turns or mirrors the stored picture."""

    digest: str
    is_turned: bool


def read_image_file(path: str) -> ImageFile:
    """Read a file that `image_size` accepts."""
    content = Path(path).read_bytes()
    with Image.open(BytesIO(content)) as image:
        if image.format == "PNG" and not is_whole(path, "PNG"):
            image.load()  # it may have EXIF after the picture
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return ImageFile(sha256(content).hexdigest(), orientation in range(2, 9))


def read_image_files(rows: Iterable[Row]) -> dict[str, ImageFile]:
    """Read every image file of the rows once; path -> what is in it."""
    paths = list(dict.fromkeys(path for row in rows for path in row.images))
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(read_image_file, paths), strict=True))


def change_of_scale(size: Size, *, family: Family, processor: Any) -> int:
    """-1 for an image that the processor shrinks, 1 for one that it enlarges, else 0.

    Qwen: by its limits in pixels; the rounding of the sides to whole cells, nearest first, counts as neither.
    InternVL: by the area of its tiles, without the thumbnail.
    """
    width, height = size
    image_processor = processor.image_processor
    if isinstance(family, QwenFamily):
        cell = image_processor.patch_size * image_processor.merge_size
        before = math.prod(max(1, round(side / cell)) * cell for side in size)
        after = math.prod(family.input_size(size, image_processor))
    else:
        tiles = family.image_tokens(size, processor) // processor.image_seq_length
        before = width * height
        after = (tiles - (tiles > 1)) * image_processor.size["height"] * image_processor.size["width"]
    return (after > before) - (after < before)


def _range_of_sides(sides: Sequence[int]) -> str:
    return f"min {min(sides)}, median {percentile(sides, 0.5)}, max {max(sides)}"


def images_section(rows: Sequence[Row], files: Mapping[str, ImageFile], *, family: Family, processor: Any) -> Section:
    """Sizes of the image files, and what the processor and the EXIF orientation do to them; each file counts once."""
    sizes = {path: size for row in rows for path, size in zip(row.images, row.image_sizes, strict=True)}
    section = Section("Images")
    if not sizes:
        section.lines.append("no images")
        return section
    contents = len({files[path].digest for path in sizes})
    scales = {size: change_of_scale(size, family=family, processor=processor) for size in set(sizes.values())}
    changes = Counter(scales[size] for size in sizes.values())
    turned = sum(files[path].is_turned for path in sizes)
    section.lines += [
        f"image files, all decoded: {len(sizes)}, different ones: {contents}",
        f"width: {_range_of_sides([width for width, _ in sizes.values()])} pixels",
        f"height: {_range_of_sides([height for _, height in sizes.values()])} pixels",
        f"different sizes: {len(scales)}",
        f"the processor shrinks {changes[-1]} and enlarges {changes[1]} of them",
        f"turned by EXIF: {turned}",
    ]
    if turned:
        section.warnings.append(
            f"images turned upright by EXIF, on which boxes must be measured upright too: {turned}"
        )
    return section


def render(sections: Sequence[Section]) -> str:
    """The report: numbered sections, warnings, verdict."""
    lines = []
    for number, section in enumerate(sections, start=1):
        lines += [f"{number}. {section.title}", *(f"   {line}" for line in section.lines)]
    lines += [f"Warning: {warning}." for section in sections for warning in section.warnings]
    failures = [failure for section in sections for failure in section.failures]
    lines.append(f"Training may not start: {'; '.join(failures)}." if failures else "Training may start.")
    return "\n".join(lines)
