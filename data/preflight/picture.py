"""Preflight for the eye: a sheet of rows with their boxes or points drawn, and question and answer below."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

from vlm_entropy.data.rows import Row
from vlm_entropy.rewards.geometry import Box, to_original
from vlm_entropy.rewards.parsing import find_point

from .places import boxes_in

TILE = 320
PADDING = 8
"""Pixels around an image, so that a frame at its edge is seen whole."""
MARGIN = 12
COLUMNS = 4
FONT_SIZE = 15
LINE_HEIGHT = 19
CAPTION_LINES = 5
CHARACTERS = 42
MARK = (230, 0, 90)
FIELD = (215, 215, 215)
POINT_RADIUS = 7


def spaced(count: int, wanted: int) -> list[int]:
    """`wanted` indices of `count`, or all if there are fewer, evenly spaced from the first on."""
    number = min(count, wanted)
    return [index * count // number for index in range(number)]


def places_of(row: Row, solution_space: str) -> list[Box]:
    """Boxes in the answer, else its first point as (x, y, x, y), in pixels of the first image."""
    boxes = boxes_in(row.answer)
    point = find_point(row.answer)
    found = boxes or ([] if point is None else [(*point, *point)])
    return [to_original(box, solution_space, image_size=row.image_sizes[0]) for box in found]


def _draw_place(draw: ImageDraw.ImageDraw, place: Box) -> None:
    """A frame outside the box, or a ring around the point, in a strong colour between white lines."""
    x1, x2 = sorted((place[0], place[2]))
    y1, y2 = sorted((place[1], place[3]))
    if x1 == x2 and y1 == y2:
        for grow, colour, width in ((2, (255, 255, 255), 7), (0, MARK, 3)):
            r = POINT_RADIUS + grow
            draw.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), outline=colour, width=width)
        return
    for grow, colour, width in ((4, (255, 255, 255), 4), (3, MARK, 2)):
        draw.rectangle((x1 - grow, y1 - grow, x2 - 1 + grow, y2 - 1 + grow), outline=colour, width=width)


def picture_of(row: Row, solution_space: str) -> Image.Image:
    """The row's first image, upright, with its places; a grey field for a row of text.

    Small images are enlarged without smoothing, so that a box can be compared with the pixels.
    """
    tile = Image.new("RGB", (TILE, TILE), FIELD)
    if not row.images:
        return tile
    with Image.open(row.images[0]) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    width, height = image.size
    scale = (TILE - 2 * PADDING) / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    left, top = (TILE - size[0]) // 2, (TILE - size[1]) // 2
    tile.paste(image, (left, top))
    draw = ImageDraw.Draw(tile)
    for x1, y1, x2, y2 in places_of(row, solution_space):
        _draw_place(draw, (x1 * scale + left, y1 * scale + top, x2 * scale + left, y2 * scale + top))
    return tile


def caption_of(row: Row) -> str:
    """At most five lines: where the row comes from and how many images it has, its question, and its answer."""
    place = Path(row.source).name + (f" ({len(row.images)} images)" if len(row.images) != 1 else "")
    question = wrap(row.question, CHARACTERS, max_lines=CAPTION_LINES - 2, placeholder=" ...")
    answer = wrap(row.answer, CHARACTERS, max_lines=1, placeholder=" ...")
    return "\n".join([place, *question, *answer])


def contact_sheet(rows: Sequence[Row], *, solution_space: str) -> Image.Image:
    """All rows, four side by side."""
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    across, down = TILE + MARGIN, TILE + LINE_HEIGHT * CAPTION_LINES + 2 * MARGIN
    sheet = Image.new("RGB", (columns * across + MARGIN, lines * down + MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for index, row in enumerate(rows):
        x, y = MARGIN + index % columns * across, MARGIN + index // columns * down
        sheet.paste(picture_of(row, solution_space), (x, y))
        spacing = LINE_HEIGHT - FONT_SIZE
        draw.multiline_text((x, y + TILE + 4), caption_of(row), fill=(0, 0, 0), font=font, spacing=spacing)
    return sheet


def write_picture(rows: Sequence[Row], path: str, *, count: int, solution_space: str) -> str:
    """Write the sheet of `count` rows, evenly spaced over the data; return the line to report."""
    chosen = [rows[index] for index in spaced(len(rows), count)]
    contact_sheet(chosen, solution_space=solution_space).save(path)
    return f"{len(chosen)} rows are drawn in {path}"
