"""Geometry with exact answers: figures with numbers that only the picture tells, and an expert's solution of each."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from pathlib import Path

from PIL import Image

from .drawing import Canvas, Colour, Spot
from .geometry_figures import FIGURES, centred
from .tasks import check_rows, conversation, distinct, empty_folder, write_split

MIN_SIZE = 80
LONGEST = 99
TRIPLES = tuple(
    (a, b, c)
    for c in range(1, LONGEST + 1)
    for b in range(1, c)
    for a in range(1, c)
    if a * a + b * b == c * c and (gcd(a, b) == 1 or c <= 60)
)
"""Pythagorean triples, (3, 4, 5) and (4, 3, 5) alike."""


@dataclass(frozen=True)
class Problem:
    """A figure and a question about it. `labels` are the numbers in the picture, the others are in the question."""

    figure: str
    numbers: tuple[int, ...]
    """What the figure is drawn from; see `geometry_figures`."""
    labels: tuple[tuple[str, str], ...]
    question: str
    steps: tuple[str, ...]
    """The expert's solution; the last step is "sum = answer"."""
    answer: int


def draw_triangle(rng: random.Random) -> Problem:
    """Two angles of a triangle are given, the third is asked for."""
    while True:
        a, b = rng.randint(30, 90), rng.randint(30, 90)
        if 30 <= 180 - a - b <= 90 and 90 not in (a, b):
            break
    question = "Find angle C in degrees."
    return Problem(
        "triangle",
        (a, b, 180 - a - b),
        (("A", str(a)), ("B", str(b)), ("C", "?")),
        question,
        (
            f"Angle A is {a} degrees and angle B is {b} degrees.",
            "The angles of a triangle add up to 180 degrees.",
            f"180 - {a} - {b} = {180 - a - b}",
        ),
        180 - a - b,
    )


def draw_rectangle(rng: random.Random) -> Problem:
    """Two sides of a rectangle are given, its area or perimeter is asked for."""
    width, height = rng.sample(range(2, 31), 2)
    area = rng.random() < 0.5
    answer = width * height if area else 2 * (width + height)
    rule = "The area is the product of the sides." if area else "The perimeter is twice the sum of the sides."
    sum_ = f"{width} * {height}" if area else f"2 * ({width} + {height})"
    return Problem(
        "rectangle",
        (width, height),
        (("AB", str(width)), ("BC", str(height))),
        f"Find the {'area' if area else 'perimeter'} of rectangle ABCD.",
        (f"AB is {width} and BC is {height}.", rule, f"{sum_} = {answer}"),
        answer,
    )


def draw_right_triangle(rng: random.Random) -> Problem:
    """Two sides of a right-angled triangle are given, the third is asked for."""
    numbers = rng.choice(TRIPLES)
    asked = rng.randrange(3)
    sides = dict(zip(("AB", "AC", "BC"), numbers, strict=True))
    name = list(sides)[asked]
    first, second = (side for side in reversed(sides) if side != name)
    sign = "+" if name == "BC" else "-"
    one, two = sides[first], sides[second]
    square = sides[name] ** 2
    return Problem(
        "right_triangle",
        numbers,
        tuple((side, "?" if side == name else str(length)) for side, length in sides.items()),
        f"Angle A is a right angle. Find {name}.",
        (
            f"{first} is {one} and {second} is {two}.",
            f"By Pythagoras, {name} squared is {first} squared {sign} {second} squared.",
            f"{one * one} {sign} {two * two} = {square}, and the square root of {square} = {sides[name]}",
        ),
        sides[name],
    )


def draw_parallel_lines(rng: random.Random) -> Problem:
    """One angle at a line across two parallels is given, another one at the other parallel is asked for."""
    angle = rng.choice([angle for angle in range(50, 131) if angle != 90])
    kind = rng.choice(("corresponding", "alternate", "co-interior"))
    given, value = ("P-below", angle) if kind != "corresponding" else ("P", angle)
    asked = "Q-left" if kind == "co-interior" else "Q"
    answer = 180 - angle if kind == "co-interior" else angle
    rule = "add up to 180 degrees" if kind == "co-interior" else "are equal"
    last = f"180 - {angle} = {answer}" if kind == "co-interior" else f"x = {answer}"
    return Problem(
        "parallel_lines",
        (angle,),
        ((given, str(value)), (asked, "x")),
        "AB and CD are parallel. Find x in degrees.",
        (
            f"The given angle is {angle} degrees, and x and it are {kind} angles.",
            f"{kind.capitalize()} angles at parallel lines {rule}.",
            last,
        ),
        answer,
    )


def draw_circle(rng: random.Random) -> Problem:
    """The radius or the diameter of a circle is given, the other one is asked for."""
    radius = rng.randint(2, LONGEST)
    if rng.random() < 0.5:
        return Problem(
            "circle",
            (radius,),
            (("OA", str(radius)),),
            "O is the centre. Find the diameter of the circle.",
            (f"The radius OA is {radius}.", "The diameter is twice the radius.", f"2 * {radius} = {2 * radius}"),
            2 * radius,
        )
    return Problem(
        "circle",
        (radius,),
        (("AB", str(2 * radius)),),
        "O is the centre. Find the radius of the circle.",
        (f"The diameter AB is {2 * radius}.", "The radius is half of it.", f"{2 * radius} / 2 = {radius}"),
        radius,
    )


DRAW: dict[str, Callable[[random.Random], Problem]] = {
    "triangle": draw_triangle,
    "rectangle": draw_rectangle,
    "right_triangle": draw_right_triangle,
    "parallel_lines": draw_parallel_lines,
    "circle": draw_circle,
}


def tell_one(problem: Problem, rng: random.Random) -> Problem:
    """Move one of several given numbers from the picture into the question; at least one stays in the picture only."""
    given = [place for place, text in problem.labels if text.isdigit()]
    if len(given) < 2:
        return problem
    told = rng.choice(given)
    value = dict(problem.labels)[told]
    name = f"Angle {told} is {value} degrees." if len(told) == 1 else f"{told} is {value}."
    labels = tuple((place, text) for place, text in problem.labels if place != told)
    return replace(problem, labels=labels, question=f"{name} {problem.question}")


def draw_problem(rng: random.Random) -> Problem:
    """A problem about one of the five figures; half of those with two given numbers tell one of them in words."""
    problem = DRAW[rng.choice(list(DRAW))](rng)
    return tell_one(problem, rng) if rng.random() < 0.5 else problem


def key(problem: Problem) -> tuple[object, ...]:
    """What makes two problems alike: the figure, its numbers and what is asked, not how they are told."""
    return problem.figure, problem.numbers, problem.steps


def render(problem: Problem, *, image_size: int) -> Image.Image:
    """Paint the figure of a problem; letters are 6 by 11 pixels for each 160 pixels of the image, at least once."""
    unit, zoom = image_size / 100, max(1, image_size // 160)
    canvas = Canvas((image_size, image_size), unit=unit)

    def write(spot: Spot, text: str, fill: Colour) -> None:
        centred(canvas, spot, text, fill, unit=unit, zoom=zoom)

    FIGURES[problem.figure](canvas, write, problem.numbers, dict(problem.labels))
    return canvas.picture()


def expert(problem: Problem) -> str:
    """The solution as CalibRL's prompt asks for it, "<think> steps </think> <answer> number </answer>"."""
    return f"<think> {' '.join(problem.steps)} </think> <answer> {problem.answer} </answer>"


def problem_row(problem: Problem, image: str, row_id: int) -> dict[str, object]:
    """One VLM-R1 row with a number as answer, and the expert's solution.

    Example:
        {"id": 3, "image": "train-000003.png",
         "conversations": [{"from": "human", "value": "<image>Angle A is 50 degrees. Find angle C in degrees."},
                           {"from": "gpt", "value": "70"}],
         "figure": "triangle",
         "expert": "<think> Angle A is 50 degrees and angle B is 60 degrees. The angles of a triangle add up to 180
                    degrees. 180 - 50 - 60 = 70 </think> <answer> 70 </answer>"}   (in one line)
    """
    return {
        "id": row_id,
        "image": image,
        "conversations": conversation(problem.question, str(problem.answer)),
        "figure": problem.figure,
        "expert": expert(problem),
    }


def distinct_problems(rng: random.Random, count: int) -> list[Problem]:
    """`count` problems, no two with the same figure, numbers and question."""
    return distinct(lambda _: draw_problem(rng), count, key=key, advice="use fewer rows")


def check_size(image_size: int) -> None:
    """Raise ValueError for an image too small for its letters."""
    if image_size < MIN_SIZE:
        raise ValueError(f"image_size must be at least {MIN_SIZE}, got {image_size}")


def make_geometry(
    out_dir: str | Path, *, rows: int, seed: int, held_out: int | None = None, image_size: int = 96
) -> tuple[Path, Path]:
    """Write `images/*.png`, `train.jsonl` and `heldout.jsonl` under `out_dir`; equal arguments give equal bytes.

    No two problems have the same figure, numbers and question, so held-out answers cannot be known by heart.

    Args:
        out_dir: new or empty folder.
        rows: training rows, >= 1; with the held-out ones there are about 4000 problems.
        seed: of the problems; independent of Python's global generator.
        held_out: held-out rows, >= 0; None means rows // 4.
        image_size: side of the square image in pixels, >= 80.

    Returns:
        The paths of the two JSONL files.

    Raises:
        ValueError: for a value that cannot be drawn, or an `out_dir` that is not empty.
    """
    held_out = rows // 4 if held_out is None else held_out
    check_rows(rows, held_out)
    check_size(image_size)
    problems = distinct_problems(random.Random(seed), rows + held_out)
    folder = empty_folder(out_dir)
    paint = partial(render, image_size=image_size)
    train = write_split(folder, "train", problems[:rows], render=paint, to_row=problem_row)
    return train, write_split(folder, "heldout", problems[rows:], render=paint, to_row=problem_row)
