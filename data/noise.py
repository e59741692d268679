"""Wrong labels by design: a fixed share of a training file's answers is replaced by answers that are surely wrong.

The protocol of the two-stage paper (arXiv 2511.07738): `round(ratio * N)` rows, drawn without replacement, are wrong
once and for all. Rows and wrong answers depend on the seed and the row alone, so the noisy rows at 20 % are among
those at 50 %, with the same wrong answers.
"""

import random
import re
from collections.abc import Sequence
from fractions import Fraction

from vlm_entropy.rewards.geometry import Box, Point, Size, is_box, point_in_box

MAX_TRIES = 1000
_NUMBER = re.compile(r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:/\d{1,30})?", re.ASCII)
FLIPPED = {"1": "2", "2": "1"}


def select_noisy(n: int, ratio: float, seed: int) -> list[int]:
    """The `round(ratio * n)` rows that become wrong (half to even), ascending.

    They are the first of one random order of all rows, so a smaller ratio selects a subset.

    Args:
        n: number of rows, >= 0.
        ratio: share of wrong labels, in [0, 1].
        seed: of the order.

    Raises:
        ValueError: for a ratio outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must be between 0 and 1, got {ratio}")
    return sorted(random.Random(seed).sample(range(n), n)[: round(ratio * n)])


def _uniform(rng: random.Random, low: float, high: float, whole: bool) -> float:
    return rng.randint(int(low), int(high)) if whole else rng.uniform(low, high)


def _place(rng: random.Random, room: Box, width: float, height: float, whole: bool) -> Box:
    """A box of the given size, uniform inside `room`."""
    x = max(room[0], _uniform(rng, room[0], room[2] - width, whole))
    y = max(room[1], _uniform(rng, room[1], room[3] - height, whole))
    return x, y, min(x + width, room[2]), min(y + height, room[3])


def _apart(a: Box, b: Box) -> bool:
    """Whether two boxes share no area; touching edges do not count."""
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _margins(truth: Sequence[Box], image_size: Size) -> list[Box]:
    """The parts of the image left of, right of, above and below all boxes of `truth`, those that hold something."""
    width, height = image_size
    left, top = min(box[0] for box in truth), min(box[1] for box in truth)
    right, bottom = max(box[2] for box in truth), max(box[3] for box in truth)
    rooms: list[Box] = [
        (0, 0, left, height),
        (right, 0, width, height),
        (0, 0, width, top),
        (0, bottom, width, height),
    ]
    return [room for room in rooms if is_box(room)]


def noisy_box(box: Box, image_size: Size, rng: random.Random, *, others: Sequence[Box] = ()) -> Box:
    """A box elsewhere in the image: its IoU with the true box is exactly 0.

    Width and height stay, and the position is uniform inside the image, by rejection. After 1000 tries the box is
    shrunk instead: one of the margins around the truth is drawn, by its area, and the box is cut to fit into it.

    Args:
        box: the true (x1, y1, x2, y2) in pixels; if all true edges are whole numbers, so are the new ones.
        image_size: (width, height) in pixels.
        rng: the only source of randomness.
        others: further true boxes of the same image, which the result must not touch either.

    Raises:
        ValueError: if a true box is empty or leaves the image, or if they leave no margin.
    """
    truth = [box, *others]
    for gold in truth:
        if not is_box(gold) or min(gold) < 0 or gold[2] > image_size[0] or gold[3] > image_size[1]:
            raise ValueError(
                f"the box {list(gold)} is no box inside an image of {image_size[0]}x{image_size[1]} pixels; "
                "boxes must be x1, y1, x2, y2 in absolute pixels of the file"
            )
    whole = all(float(edge).is_integer() for gold in truth for edge in gold)
    width, height = box[2] - box[0], box[3] - box[1]
    for _ in range(MAX_TRIES):
        place = _place(rng, (0, 0, *image_size), width, height, whole)
        if all(_apart(place, gold) for gold in truth):
            return place
    rooms = _margins(truth, image_size)
    if not rooms:
        raise ValueError(f"the box {list(box)} leaves no room beside it in {image_size[0]}x{image_size[1]} pixels")
    areas = [(room[2] - room[0]) * (room[3] - room[1]) for room in rooms]
    (room,) = rng.choices(rooms, weights=areas)
    return _place(rng, room, min(width, room[2] - room[0]), min(height, room[3] - room[1]), whole)


def noisy_point(point: Point, image_size: Size, rng: random.Random, *, box: Box | None = None) -> Point:
    """A point uniform in the image, other than the true one and, if there is a gold box, outside it.

    The borders belong to the box, as in `point_in_box`. A pixel of the image is 0 to its size - 1.

    Args:
        point: the true (x, y) in pixels; whole numbers give whole numbers.
        image_size: (width, height) in pixels.
        rng: the only source of randomness.
        box: gold box, (x1, y1, x2, y2) in pixels.

    Raises:
        ValueError: if the point lies outside the image, or after 1000 points without a wrong one.
    """
    if not (0 <= point[0] <= image_size[0] and 0 <= point[1] <= image_size[1]):
        raise ValueError(
            f"the point {list(point)} lies outside an image of {image_size[0]}x{image_size[1]} pixels; "
            "points must be in absolute pixels of the file"
        )
    whole = all(float(number).is_integer() for number in point)
    for _ in range(MAX_TRIES):
        x, y = (_uniform(rng, 0, side - 1, whole) for side in image_size)
        if (x, y) != tuple(point) and not (box is not None and point_in_box((x, y), box)):
            return x, y
    raise ValueError(f"found no wrong point for {list(point)} in {image_size[0]}x{image_size[1]} pixels")


def noisy_class(name: str, classes: Sequence[str], rng: random.Random) -> str:
    """Another class, uniform over the others (36 of 37), so that a ratio of 1 means that every label is wrong.

    Raises:
        ValueError: if there is no other class.
    """
    others = sorted(set(classes) - {name})
    if not others:
        raise ValueError(f"the class {name!r} is the only one, so no other can replace it")
    return rng.choice(others)


def number_value(text: str) -> Fraction:
    """The exact value of "12", "-3.50", "1,234" or "3/4".

    Raises:
        ValueError: for anything else.
    """
    plain = text.strip().replace(",", "")
    if not _NUMBER.fullmatch(plain):
        raise ValueError(f"the answer {text!r} is no number like 12, -3.5 or 3/4")
    over, _, under = plain.partition("/")
    if under and not int(under):
        raise ValueError(f"the answer {text!r} divides by zero")
    return Fraction(over) / int(under or 1)


def noisy_number(answer: str, answers: Sequence[str], rng: random.Random) -> str:
    """The answer of another row, uniform over the rows whose answer differs in value ("12.0" is "12").

    Args:
        answer: the true answer.
        answers: those of all rows.
        rng: the only source of randomness.

    Raises:
        ValueError: for an answer that is no number, or if all rows have the same value.
    """
    value = number_value(answer)
    for _ in range(MAX_TRIES):
        candidate = rng.choice(answers)
        if number_value(candidate) != value:
            return candidate
    others = [candidate for candidate in answers if number_value(candidate) != value]
    if not others:
        raise ValueError(f"every row has the answer {answer!r}, so no other can replace it")
    return rng.choice(others)


def noisy_preference(label: str) -> str:
    """The other response: "1" for "2" and "2" for "1".

    Raises:
        ValueError: for any other label.
    """
    if label not in FLIPPED:
        raise ValueError(f"the preference is {label!r}; allowed are 1 and 2")
    return FLIPPED[label]
