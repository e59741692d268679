"""Figures of the geometry task, painted on 100 by 100 units: every one to scale, with its points and numbers."""

import math
from collections.abc import Callable, Sequence

from .drawing import LETTER_HEIGHT, LETTER_WIDTH, Canvas, Colour, Spot

INK, FILL, MARK, LETTERS = (30, 40, 70), (226, 236, 252), (214, 70, 60), (30, 90, 180)
STROKE = 1.6
Labels = dict[str, str]
"""What is written in the figure: place -> text."""


def centred(canvas: Canvas, spot: Spot, text: str, fill: Colour, *, unit: float, zoom: int) -> None:
    """Text with its middle at `spot`, moved as far as needed to stay inside 100 by 100 units."""
    width, height = LETTER_WIDTH * zoom * len(text) / unit, LETTER_HEIGHT * zoom / unit
    x = min(max(spot[0] - width / 2, 0.0), 100 - width)
    y = min(max(spot[1] - height / 2, 0.0), 100 - height)
    canvas.text((x, y), text, fill, zoom=zoom)


def outwards(spot: Spot, middle: Spot, distance: float) -> Spot:
    """`spot` moved away from `middle` by `distance` units; a negative distance moves it closer."""
    dx, dy = spot[0] - middle[0], spot[1] - middle[1]
    length = math.hypot(dx, dy)
    return spot[0] + distance * dx / length, spot[1] + distance * dy / length


def outline(canvas: Canvas, spots: Sequence[Spot]) -> None:
    """A filled polygon with a drawn border."""
    canvas.polygon(spots, FILL)
    canvas.line([*spots, spots[0]], INK, width=STROKE)


def fit(width: float, height: float, room: float) -> tuple[float, float]:
    """Width and height scaled to fit into a square of `room` units."""
    scale = room / max(width, height)
    return width * scale, height * scale


Writer = Callable[[Spot, str, Colour], None]


def triangle(canvas: Canvas, write: Writer, numbers: Sequence[int], labels: Labels) -> None:
    """ABC with the angles `numbers` (degrees) at A, B and C; AB is the base. Labels by corner: "A", "B", "C"."""
    alpha, beta = math.radians(numbers[0]), math.radians(numbers[1])
    x = math.tan(beta) / (math.tan(alpha) + math.tan(beta)) if alpha + beta else 0.0
    width, height = fit(1.0, x * math.tan(alpha), 70)
    left, bottom = 50 - width / 2, 50 + height / 2
    corners = {"A": (left, bottom), "B": (left + width, bottom), "C": (left + x * width, bottom - height)}
    outline(canvas, list(corners.values()))
    middle = (sum(spot[0] for spot in corners.values()) / 3, sum(spot[1] for spot in corners.values()) / 3)
    for name, spot in corners.items():
        write(outwards(spot, middle, 8), name, LETTERS)
        if name in labels:
            write(outwards(spot, middle, -18), labels[name], MARK)


def rectangle(canvas: Canvas, write: Writer, numbers: Sequence[int], labels: Labels) -> None:
    """ABCD, AB below, with sides `numbers`; no side is drawn shorter than 40 % of the other. Labels: "AB", "BC"."""
    width, height = fit(max(numbers[0], 0.4 * numbers[1]), max(numbers[1], 0.4 * numbers[0]), 56)
    left, top, right, bottom = 50 - width / 2, 50 - height / 2, 50 + width / 2, 50 + height / 2
    corners = {"A": (left, bottom), "B": (right, bottom), "C": (right, top), "D": (left, top)}
    outline(canvas, list(corners.values()))
    for name, spot in corners.items():
        write(outwards(spot, (50, 50), 8), name, LETTERS)
    _write_sides(write, corners, labels)


def right_triangle(canvas: Canvas, write: Writer, numbers: Sequence[int], labels: Labels) -> None:
    """ABC with the right angle at A, `numbers` = AB, AC, BC. Labels by side: "AB", "AC", "BC"."""
    width, height = fit(max(numbers[0], 0.4 * numbers[1]), max(numbers[1], 0.4 * numbers[0]), 60)
    left, bottom = 50 - width / 2, 50 + height / 2
    corners = {"A": (left, bottom), "B": (left + width, bottom), "C": (left, bottom - height)}
    outline(canvas, list(corners.values()))
    canvas.line(((left, bottom - 6), (left + 6, bottom - 6), (left + 6, bottom)), INK, width=1)
    middle = (left + width / 3, bottom - height / 3)
    for name, spot in corners.items():
        write(outwards(spot, middle, 8), name, LETTERS)
    _write_sides(write, corners, labels)


def _write_sides(write: Writer, corners: dict[str, Spot], labels: Labels) -> None:
    middle = (sum(spot[0] for spot in corners.values()) / len(corners), 0.0)
    middle = (middle[0], sum(spot[1] for spot in corners.values()) / len(corners))
    for side, text in labels.items():
        (x1, y1), (x2, y2) = corners[side[0]], corners[side[1]]
        normal = (y1 - y2, x2 - x1)
        length = math.hypot(*normal)
        half = ((x1 + x2) / 2, (y1 + y2) / 2)
        sign = 1 if (half[0] - middle[0]) * normal[0] + (half[1] - middle[1]) * normal[1] > 0 else -1
        away = 10 if abs(normal[0]) > abs(normal[1]) / 4 else 8
        write((half[0] + sign * away * normal[0] / length, half[1] + sign * away * normal[1] / length), text, MARK)


def parallel_lines(canvas: Canvas, write: Writer, numbers: Sequence[int], labels: Labels) -> None:
    """Parallel lines AB (above) and CD, cut at P and Q by a line that makes `numbers[0]` degrees with both.

    Labels: "P" and "Q" are the angles between the direction to the right and the line upwards, "P-left" and so on the
    others: "P" (right, above), "P-below" (left, below), "Q", "Q-left" (left, above).
    """
    angle = math.radians(numbers[0])
    dx = 34 / math.tan(angle)
    top, bottom = (50 + dx / 2, 33.0), (50 - dx / 2, 67.0)
    reach = (0.5 * dx, 17.0)
    canvas.line(((10, 33), (90, 33)), INK, width=STROKE)
    canvas.line(((10, 67), (90, 67)), INK, width=STROKE)
    canvas.line(((bottom[0] - reach[0], 67 + reach[1]), (top[0] + reach[0], 33 - reach[1])), INK, width=STROKE)
    for name, spot in {"A": (5, 33), "B": (95, 33), "C": (5, 67), "D": (95, 67)}.items():
        write(spot, name, LETTERS)
    for place, text in labels.items():
        corner = top if place.startswith("P") else bottom
        turn = {"": angle / 2, "left": (angle + math.pi) / 2, "below": math.pi + angle / 2}[place[2:]]
        rise = 9 if math.sin(turn) > 0 else -9
        aside = 4 if place in ("P", "Q") else -4
        write((corner[0] + rise / math.tan(turn) + aside, corner[1] - rise), text, MARK)


def circle(canvas: Canvas, write: Writer, numbers: Sequence[int], labels: Labels) -> None:
    """A circle around O with a radius OA or a diameter AB drawn; `numbers` = its radius, its diameter."""
    radius = 24 + 14 * numbers[0] / 99
    frame = (50 - radius, 50 - radius, 50 + radius, 50 + radius)
    canvas.ellipse(frame, FILL)
    canvas.ring(frame, INK, width=STROKE)
    start = 50.0 - radius if "AB" in labels else 50.0
    canvas.line(((start, 50), (50 + radius, 50)), MARK, width=STROKE)
    canvas.ellipse((48, 48, 52, 52), INK)
    write((50, 60), "O", LETTERS)
    ends = {"A": start, "B": 50 + radius} if "AB" in labels else {"A": 50 + radius}
    for name, x in ends.items():
        write(outwards((x, 50), (50, 50), 7), name, LETTERS)
    (text,) = labels.values()
    write(((start + 50 + radius) / 2, 42), text, MARK)


FIGURES: dict[str, Callable[[Canvas, Writer, Sequence[int], Labels], None]] = {
    "triangle": triangle,
    "rectangle": rectangle,
    "right_triangle": right_triangle,
    "parallel_lines": parallel_lines,
    "circle": circle,
}
