"""Preflight of coordinates: are the gold boxes inside their images, and what does a family's rounding cost them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vlm_entropy.data.families import Family
from vlm_entropy.data.rows import Row
from vlm_entropy.rewards.geometry import Box, Size, iou, is_box, to_original
from vlm_entropy.rewards.parsing import find_box

from .report import Section, listed, rows_of

DATA_SPACES = ("absolute", "relative_1000", "relative_1")
MAX_OUTSIDE = 1.0
"""Pixels by which a gold box may leave the image; annotations differ in whether the last pixel counts."""
MANY = 0.05
"""Share of boxes outside the image from which another space is looked for."""
SMALL_IOU = 0.5
"""A box that rounding leaves below it cannot be answered rightly in whole numbers."""
_BRACKETS = re.compile(r"\[[^\[\]]*\]")


def boxes_in(text: str) -> list[Box]:
    """All boxes `[x1, y1, x2, y2]` of a text, in order; the first is that of `find_box`."""
    found = (find_box(match[0]) for match in _BRACKETS.finditer(text))
    return [box for box in found if box is not None]


def convert_boxes(text: str, convert: Callable[[Box], str]) -> str:
    """The text with every box in it replaced by what `convert` makes of it."""

    def replace(match: re.Match[str]) -> str:
        box = find_box(match[0])
        return match[0] if box is None else convert(box)

    return _BRACKETS.sub(replace, text)


class GoldBox(NamedTuple):
    """A box of an answer, as written, and the (width, height) in pixels of its image and of the model's."""

    source: str
    box: Box
    image_size: Size
    input_size: Size

    def pixels(self, space: str) -> Box:
        """The box in pixels of the image, if it is written in `space`."""
        return to_original(self.box, space, image_size=self.image_size)


def gold_boxes(rows: Sequence[Row], *, family: Family, processor: Any) -> list[GoldBox]:
    """All boxes in the answers of rows with an image; the first image is the one they are in."""
    return [
        GoldBox(row.source, box, row.image_sizes[0], family.input_size(row.image_sizes[0], processor.image_processor))
        for row in rows
        if row.image_sizes
        for box in boxes_in(row.answer)
    ]


def pixels_outside(box: Box, size: Size) -> float:
    """How far the corners of a box lie outside an image of (width, height), the largest distance along an axis; >= 0.

    >>> pixels_outside((-2, 0, 643, 480), (640, 480))
    3.0
    """
    xs, ys = box[0::2], box[1::2]
    return float(max(0, -min(xs), -min(ys), max(xs) - size[0], max(ys) - size[1]))


def rounded_box(gold: GoldBox, *, family: Family, solution_space: str) -> list[int]:
    """The box in whole numbers of the family's space, as the model would write it."""
    pixels = gold.pixels(solution_space)
    box = family.from_original(pixels, image_size=gold.image_size, input_size=gold.input_size)
    return [round(side) for side in box]


def rounding_iou(gold: GoldBox, *, family: Family, solution_space: str) -> float:
    """IoU of a box with itself after rounding in the family's space; 1 means that nothing is lost."""
    x1, y1, x2, y2 = rounded_box(gold, family=family, solution_space=solution_space)
    back = family.to_original((x1, y1, x2, y2), image_size=gold.image_size, input_size=gold.input_size)
    return iou(gold.pixels(solution_space), back)


def _is_inside(gold: GoldBox, space: str) -> bool:
    return pixels_outside(gold.pixels(space), gold.image_size) <= MAX_OUTSIDE


def other_space(boxes: Sequence[GoldBox], solution_space: str) -> str | None:
    """A hint at the space that the boxes may be in, for a person to judge; None if the stated one looks right.

    It is looked for if more than 5 % of the boxes lie outside the image, or if all are in pixels and end within one.
    """
    outside = sum(not _is_inside(gold, solution_space) for gold in boxes)
    if solution_space == "absolute" and all(0 <= side <= 1 for gold in boxes for side in gold.box):
        return "all numbers lie in 0..1, as in relative_1"
    if outside <= MANY * len(boxes):
        return None
    fits = {space: sum(_is_inside(gold, space) for gold in boxes) for space in DATA_SPACES if space != solution_space}
    counts = " and ".join(f"{count} of {len(boxes)} if they were in {space}" for space, count in fits.items())
    return f"inside the image would be {counts}"


def places_section(boxes: Sequence[GoldBox], *, family: Family, solution_space: str) -> Section:
    """Whether the gold boxes lie inside their images, and what is lost when the family writes them."""
    section = Section("Coordinates")
    if not boxes:
        section.lines.append("no answer of a row with an image holds a box")
        return section
    distances = [pixels_outside(gold.pixels(solution_space), gold.image_size) for gold in boxes]
    near = sum(0 < distance <= MAX_OUTSIDE for distance in distances)
    far = [gold.source for gold, distance in zip(boxes, distances, strict=True) if distance > MAX_OUTSIDE]
    empty = [gold.source for gold in boxes if not is_box(gold.box)]
    section.lines += [
        f"{len(boxes)} boxes in {rows_of(len({gold.source for gold in boxes}))}, read as {solution_space}",
        f"inside the image: {len(boxes) - near - len(far)}, outside by up to 1 pixel: {near}, further: {len(far)}",
    ]
    if far:
        section.lines.append(f"further outside: {listed(far)}")
        section.failures.append(f"gold boxes more than 1 pixel outside the image: {len(far)}")
    if empty:
        section.lines.append(f"of zero or reversed size: {listed(empty)}")
        section.warnings.append(f"gold boxes of zero or reversed size, which no reward can judge: {len(empty)}")
    hint = other_space(boxes, solution_space)
    if hint is not None:
        section.lines.append(f"hint: {hint}; --solution_space is yours to say")
        section.warnings.append(f"the boxes may not be in {solution_space}")
    losses = [rounding_iou(gold, family=family, solution_space=solution_space) for gold in boxes if is_box(gold.box)]
    section.lines.append(f"{family.model_type} answers in {family.space}: {family.answer}")
    if losses:
        mean = sum(losses) / len(losses)
        section.lines.append(f"IoU after rounding to whole numbers there: min {min(losses):.3f}, mean {mean:.3f}")
    lost = sum(loss < SMALL_IOU for loss in losses)
    if lost:
        section.warnings.append(
            f"gold boxes too small for whole numbers, which leave them an IoU below {SMALL_IOU}: {lost}"
        )
    return section
