"""Fine-grained classification: flowers that differ in petals, colour and centre, near classes in only one of them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from PIL import Image

from .drawing import Canvas, Colour, Spot
from .tasks import check_rows, conversation, distinct, empty_folder, write_split

NUMBERS = {"three": 3, "four": 4, "five": 5, "six": 6, "eight": 8}
PETALS: dict[str, Colour] = {
    "red": (222, 44, 52),
    "purple": (140, 70, 200),
    "orange": (248, 140, 28),
    "blue": (70, 110, 236),
    "pink": (250, 140, 190),
}
CENTRES: dict[str, Colour] = {
    "yellow": (252, 220, 60),
    "black": (36, 30, 34),
    "white": (252, 252, 252),
    "green": (70, 160, 60),
}
BACKGROUNDS: tuple[Colour, ...] = ((224, 240, 250), (250, 246, 226), (228, 244, 224), (246, 234, 244), (236, 236, 240))
LEAF, STEM = (96, 176, 84), (66, 138, 70)
MAX_CLASSES = len(NUMBERS) * len(PETALS) * len(CENTRES)
MIN_SIZE = 32
QUESTION = "Which flower is this?"


@dataclass(frozen=True)
class Kind:
    """A class: what every flower of it has in common."""

    colour: str
    number: str
    centre: str

    @property
    def name(self) -> str:
        """The class in words; no name is part of another, so a lenient comparison cannot mix them up."""
        return f"{self.colour} {self.number} petal {self.centre} centre"


@dataclass(frozen=True)
class Flower:
    """One picture: x, y and radius of the flower in hundredths of the image, its turn in degrees (below that from
    one petal to the next, which would be the same picture), its background."""

    kind: Kind
    x: int
    y: int
    radius: int
    turn: int
    background: int


def flower_kinds(count: int) -> list[Kind]:
    """The first `count` classes; each shares two attributes with one before it.

    They grow as a cube of attributes, (colour, number, centre) by their largest index: 8 classes are 2 x 2 x 2.
    """
    cells = product(range(len(PETALS)), range(len(NUMBERS)), range(len(CENTRES)))
    colours, numbers, centres = list(PETALS), list(NUMBERS), list(CENTRES)
    cube = sorted(cells, key=lambda cell: (max(cell), cell))
    return [Kind(colours[i], numbers[j], centres[k]) for i, j, k in cube[:count]]


def draw_flower(rng: random.Random, *, place: int, kinds: Sequence[Kind]) -> Flower:
    """A flower of class `place % len(kinds)`, so that the classes take turns."""
    radius = rng.randint(26, 36)
    x, y = rng.randint(radius + 2, 98 - radius), rng.randint(radius + 2, 94 - radius)
    kind = kinds[place % len(kinds)]
    turn = rng.randrange(360 // NUMBERS[kind.number])
    return Flower(kind, x, y, radius, turn, rng.randrange(len(BACKGROUNDS)))


def petal(middle: Spot, radius: float, direction: float, width: float) -> list[Spot]:
    """The outline of one petal: from `middle` outwards, widest at 60 % of its length."""
    cosine, sine = math.cos(direction), math.sin(direction)
    spots = []
    for step in range(24):
        angle = 2 * math.pi * step / 24
        along = radius * (0.55 + 0.45 * math.cos(angle))
        across = width * math.sin(angle) * (1 + 0.35 * math.cos(angle))
        spots.append((middle[0] + along * cosine - across * sine, middle[1] + along * sine + across * cosine))
    return spots


def darker(colour: Colour, share: float) -> Colour:
    """The colour with each channel multiplied by `share`."""
    red, green, blue = (int(channel * share) for channel in colour)
    return red, green, blue


def render(flower: Flower, *, image_size: int) -> Image.Image:
    """Paint the flower with its stem."""
    canvas = Canvas((image_size, image_size), unit=image_size / 100, background=BACKGROUNDS[flower.background])
    x, y, radius = flower.x, flower.y, flower.radius
    canvas.line(((x, y), (x + 4, 104)), STEM, width=3)
    foot = (x + 3, min(96, y + radius + 14))
    canvas.polygon(petal(foot, 22, math.radians(-25), 5), LEAF)
    canvas.polygon(petal(foot, 22, math.radians(205), 5), LEAF)
    count, colour = NUMBERS[flower.kind.number], PETALS[flower.kind.colour]
    width = min(0.34, 1.5 / count) * radius
    for number in range(count):
        direction = math.radians(flower.turn) + 2 * math.pi * number / count
        canvas.polygon(petal((x, y), radius + 0.8, direction, width + 0.8), darker(colour, 0.72))
        canvas.polygon(petal((x, y), radius - 0.8, direction, width - 0.8), colour)
    for share, paint in ((0.3, darker(colour, 0.5)), (0.25, CENTRES[flower.kind.centre])):
        side = share * radius
        canvas.ellipse((x - side, y - side, x + side, y + side), paint)
    return canvas.picture()


def flower_row(flower: Flower, image: str, row_id: int) -> dict[str, object]:
    """One VLM-R1 row whose answer is the class.

    Example:
        {"id": 3, "image": "train-000003.png",
         "conversations": [{"from": "human", "value": "<image>Which flower is this?"},
                           {"from": "gpt", "value": "red five petal yellow centre"}],
         "response": "<think>five petals, red, the centre is yellow</think>
                      <answer>red five petal yellow centre</answer>"}   (in one line)
    """
    kind = flower.kind
    think = f"{kind.number} petals, {kind.colour}, the centre is {kind.centre}"
    return {
        "id": row_id,
        "image": image,
        "conversations": conversation(QUESTION, kind.name),
        "response": f"<think>{think}</think><answer>{kind.name}</answer>",
    }


def make_classes(
    out_dir: str | Path,
    *,
    rows: int | None = None,
    shots: int | None = None,
    seed: int,
    held_out: int | None = None,
    image_size: int = 48,
    classes: int = 8,
) -> tuple[Path, Path]:
    """Write `images/*.png`, `train.jsonl` and `heldout.jsonl` under `out_dir`; equal arguments give equal bytes.

    The classes take turns in both files, and no two flowers are alike.

    Args:
        out_dir: new or empty folder.
        rows: training rows, >= 1; this or `shots`.
        shots: training rows of each class, >= 1.
        seed: of the flowers; independent of Python's global generator.
        held_out: held-out rows, >= 0; None means a quarter of the training rows, at least one of each class.
        image_size: side of the square image in pixels, >= 32.
        classes: number of classes, 2 to 100; more have more near classes among them.

    Returns:
        The paths of the two JSONL files.

    Raises:
        ValueError: for a value that cannot be drawn, or an `out_dir` that is not empty.
    """
    if (rows is None) == (shots is None):
        raise ValueError(f"exactly one of rows and shots is needed, got rows={rows} and shots={shots}")
    if shots is not None and shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    if not 2 <= classes <= MAX_CLASSES:
        raise ValueError(f"classes must be between 2 and {MAX_CLASSES}, got {classes}")
    if image_size < MIN_SIZE:
        raise ValueError(f"image_size must be at least {MIN_SIZE}, got {image_size}")
    train_rows = rows if rows is not None else (shots or 0) * classes
    held_out = max(train_rows // 4, classes) if held_out is None else held_out
    check_rows(train_rows, held_out)
    rng, kinds = random.Random(seed), flower_kinds(classes)
    count = train_rows + held_out
    places = [*range(train_rows), *range(held_out)]
    flowers = distinct(
        lambda place: draw_flower(rng, place=places[place], kinds=kinds),
        count,
        key=lambda flower: flower,
        advice="use fewer rows",
    )
    folder = empty_folder(out_dir)
    paint = partial(render, image_size=image_size)
    train = write_split(folder, "train", flowers[:train_rows], render=paint, to_row=flower_row)
    return train, write_split(folder, "heldout", flowers[train_rows:], render=paint, to_row=flower_row)
