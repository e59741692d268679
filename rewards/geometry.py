"""Boxes: overlap, containment, and the four coordinate spaces a model may answer in.

A box is (x1, y1, x2, y2) with x to the right and y down. Boxes are continuous: the box (0, 0, 2, 2) has area 4, not 9.
Which space a box is in is stated by the model family or the caller; it is never inferred from the numbers.
"""

import math

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Size = tuple[int, int]

SPACES = ("absolute", "absolute_resized", "relative_1000", "relative_1")
"""absolute: pixels of the original image. absolute_resized: pixels of the image after the processor's resize.
relative_1000: thousandths of the width and height, 0..1000. relative_1: fractions of them, 0..1."""


def is_box(box: Box) -> bool:
    """Tell whether `box` encloses something: four finite numbers with x1 < x2 and y1 < y2."""
    x1, y1, x2, y2 = box
    return all(map(math.isfinite, box)) and x1 < x2 and y1 < y2


def area(box: Box) -> float:
    """Area (x2 - x1)(y2 - y1) of a box, 0 if it is empty, reversed or not finite."""
    return (box[2] - box[0]) * (box[3] - box[1]) if is_box(box) else 0.0


def _intersection(a: Box, b: Box) -> float:
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes: |A ∩ B| / |A ∪ B|.

    Departs from VLM-R1, whose integer-pixel intersection scores an overlap of one pixel or less as 0.

    Args:
        a, b: boxes in one and the same space, any unit.

    Returns:
        A number in [0, 1]; 0 if either box is empty, reversed or not finite, or if the areas overflow a float.
    """
    if not (is_box(a) and is_box(b)):
        return 0.0
    intersection = _intersection(a, b)
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0.0 else 0.0  # overflow makes it NaN


def giou(a: Box, b: Box) -> float:
    """Generalised IoU: |A ∩ B| / |A ∪ B| - (|C| - |A ∪ B|) / |C|, C the smallest box around both.

    Rezatofighi et al. 2019, algorithm 1, https://arxiv.org/abs/1902.09630.

    Args:
        a, b: boxes in one and the same space, any unit.

    Returns:
        A number in [-1, 1], 1 for equal boxes; -1 if either box is empty, reversed or not finite, or on overflow.
    """
    if not (is_box(a) and is_box(b)):
        return -1.0
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    intersection = _intersection(a, b)
    union = area(a) + area(b) - intersection
    if not (union > 0.0 and 0.0 < hull < math.inf):
        return -1.0
    return max(-1.0, intersection / union - max(0.0, hull - union) / hull)


def point_in_box(point: Point, box: Box) -> bool:
    """Tell whether the point lies in the box, borders included; False for a reversed box or a NaN anywhere."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _unit(space: str, image_size: Size | None, input_size: Size | None) -> tuple[Size, tuple[float, float]]:
    """Return the original size and the size (width, height) that the numbers of `space` are measured against."""
    if space not in SPACES:
        raise ValueError(f"Unknown coordinate space {space!r}; allowed are {', '.join(SPACES)}.")
    sizes = {"image_size": image_size, "input_size": input_size if space == "absolute_resized" else image_size}
    for name, size in sizes.items():
        if size is None or min(size) <= 0:
            raise ValueError(f"Space {space!r} needs {name} as a positive (width, height), got {size!r}.")
    original, resized = sizes["image_size"], sizes["input_size"]
    assert original is not None
    assert resized is not None
    return original, {"relative_1000": (1000, 1000), "relative_1": (1, 1)}.get(space, resized)


def to_original(box: Box, space: str, *, image_size: Size | None, input_size: Size | None = None) -> Box:
    """Convert a box from `space` to pixels of the original image: x' = x · W / W_space, y' = y · H / H_space.

    Args:
        box: four numbers in `space`; neither clipped nor rounded.
        space: one of `SPACES`.
        image_size: (width, height) of the original image, pixels.
        input_size: (width, height) of the image after the processor's resize, pixels; only for `absolute_resized`.

    Raises:
        ValueError: for an unknown space, or a size that the space needs and that is missing or not positive.
    """
    (width, height), (unit_x, unit_y) = _unit(space, image_size, input_size)
    x, y = width / unit_x, height / unit_y
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def from_original(box: Box, space: str, *, image_size: Size | None, input_size: Size | None = None) -> Box:
    """Convert a box from pixels of the original image to `space`; the inverse of `to_original`, same arguments."""
    (width, height), (unit_x, unit_y) = _unit(space, image_size, input_size)
    x, y = unit_x / width, unit_y / height
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y
