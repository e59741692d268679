"""Referring expressions over coloured shapes: the smallest task in which a model must look before it answers."""

import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

from .tasks import MAX_DRAWS, check_rows, conversation, distinct, empty_folder, write_split

Box = tuple[int, int, int, int]

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (240, 210, 40)}
SHAPES = ("square", "circle", "triangle")
ROWS_OF_IMAGE = ("top", "middle", "bottom")
COLUMNS_OF_IMAGE = ("left", "centre", "right")
BACKGROUND = (255, 255, 255)


@dataclass(frozen=True)
class Shape:
    """One object of a scene; `cells` is its tight xyxy box in grid cells, the end excluded."""

    colour: str
    kind: str
    cells: Box


Scene = tuple[Shape, ...]


def overlaps(a: Box, b: Box) -> bool:
    """Whether two xyxy boxes (end excluded) share a cell; touching edges do not count."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_box(rng: random.Random, grid: int, taken: list[Box]) -> Box:
    """A square box of grid//4 to grid//2 cells a side, uniform in side and place, that overlaps none of `taken`.

    Raises:
        ValueError: if no free place turns up, because the grid is too full.
    """
    for _ in range(MAX_DRAWS):
        side = rng.randint(max(1, grid // 4), max(1, grid // 2))
        x, y = rng.randint(0, grid - side), rng.randint(0, grid - side)
        box = (x, y, x + side, y + side)
        if not any(overlaps(box, other) for other in taken):
            return box
    raise ValueError(f"found no free place for object {len(taken) + 1} on a grid of {grid}: use fewer objects")


def draw_scene(rng: random.Random, *, grid: int, objects: int) -> Scene:
    """`objects` shapes without overlap; colour and kind together name exactly one. The first is the one asked for."""
    names = rng.sample(list(product(COLOURS, SHAPES)), objects)
    boxes: list[Box] = []
    for _ in names:
        boxes.append(draw_box(rng, grid, boxes))
    return tuple(Shape(colour, kind, box) for (colour, kind), box in zip(names, boxes, strict=True))


def region(cells: Box, grid: int) -> str:
    """Which third of the image holds the middle of the box, in words: "top left", "middle centre", "bottom right"."""
    column, row = (3 * (cells[i] + cells[i + 2]) // (2 * grid) for i in (0, 1))
    return f"{ROWS_OF_IMAGE[row]} {COLUMNS_OF_IMAGE[column]}"


def render(scene: Scene, *, image_size: int, grid: int) -> Image.Image:
    """Paint the scene; every shape touches all four sides of its box."""
    image = Image.new("RGB", (image_size, image_size), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for shape in scene:
        left, top, end_x, end_y = (edge * image_size // grid for edge in shape.cells)
        right, bottom = end_x - 1, end_y - 1
        colour = COLOURS[shape.colour]
        if shape.kind == "square":
            canvas.rectangle((left, top, right, bottom), fill=colour)
        elif shape.kind == "circle":
            canvas.ellipse((left, top, right, bottom), fill=colour)
        else:
            canvas.polygon(((left, bottom), ((left + right) // 2, top), (right, bottom)), fill=colour)
    return image


def scene_row(scene: Scene, *, image: str, row_id: int, image_size: int, grid: int) -> dict[str, object]:
    """One VLM-R1 row about the first shape, with the gold box in pixels of the file.

    Example:
        {"id": 3, "image": "train-000003.png",
         "conversations": [{"from": "human", "value": "<image>Find the red square."},
                           {"from": "gpt", "value": "[4, 8, 12, 16]"}],
         "response": "<think>top left</think><answer>{box}</answer>"}

    `response` is what a warm-started model should say; `{box}` stands for the gold box in that model's coordinates.
    """
    target = scene[0]
    box = [edge * image_size // grid for edge in target.cells]
    return {
        "id": row_id,
        "image": image,
        "conversations": conversation(f"Find the {target.colour} {target.kind}.", str(box)),
        "response": f"<think>{region(target.cells, grid)}</think><answer>{{box}}</answer>",
    }


def check_arguments(*, rows: int, held_out: int, image_size: int, grid: int, objects: int) -> None:
    """Raise ValueError, naming the value, for a task that cannot be drawn."""
    check_rows(rows, held_out)
    if grid < 2:
        raise ValueError(f"grid must be at least 2, got {grid}")
    if image_size < grid or image_size % grid:
        raise ValueError(f"image_size must be a multiple of grid {grid}, got {image_size}")
    if not 1 <= objects <= len(COLOURS) * len(SHAPES):
        raise ValueError(f"objects must be between 1 and {len(COLOURS) * len(SHAPES)}, got {objects}")


def make_shapes(
    out_dir: str | Path,
    *,
    rows: int,
    seed: int,
    held_out: int | None = None,
    image_size: int = 32,
    grid: int = 8,
    objects: int = 2,
) -> tuple[Path, Path]:
    """Write `images/*.png`, `train.jsonl` and `heldout.jsonl` under `out_dir`; equal arguments give equal bytes.

    The defaults make every gold box a whole number in both coordinate spaces: multiples of 4 pixels of the file,
    and multiples of 125 on the 0-1000 scale. No two scenes are alike, so nothing held out was seen in training.

    Args:
        out_dir: new or empty folder.
        rows: training rows, >= 1.
        seed: of the scenes; independent of Python's global generator.
        held_out: held-out rows, >= 0; None means rows // 4.
        image_size: side of the square image in pixels, a multiple of `grid`.
        grid: cells along a side; boxes lie on cell edges.
        objects: shapes in each image, 1 to 12; all but one are distractors.

    Returns:
        The paths of the two JSONL files.

    Raises:
        ValueError: for a value that cannot be drawn, or an `out_dir` that is not empty.
    """
    held_out = rows // 4 if held_out is None else held_out
    check_arguments(rows=rows, held_out=held_out, image_size=image_size, grid=grid, objects=objects)
    sizes = {"image_size": image_size, "grid": grid}
    rng = random.Random(seed)
    scenes = distinct(
        lambda _: draw_scene(rng, grid=grid, objects=objects),
        rows + held_out,
        key=lambda scene: scene,
        advice="use a finer grid or more objects",
    )
    folder = empty_folder(out_dir)

    def paint(scene: Scene) -> Image.Image:
        return render(scene, **sizes)

    def to_row(scene: Scene, image: str, row_id: int) -> dict[str, object]:
        return scene_row(scene, image=image, row_id=row_id, **sizes)

    train = write_split(folder, "train", scenes[:rows], render=paint, to_row=to_row)
    return train, write_split(folder, "heldout", scenes[rows:], render=paint, to_row=to_row)
