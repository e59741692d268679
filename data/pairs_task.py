"""Preference pairs: two answers to a question about a picture, one right and one subtly wrong."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from . import geometry_task, shapes
from .geometry_task import Problem, draw_problem
from .noise import select_noisy
from .pairs import balanced, flip, pairwise_question
from .shapes import COLOURS, COLUMNS_OF_IMAGE, ROWS_OF_IMAGE, SHAPES, Scene, Shape, draw_scene, region
from .tasks import check_rows, conversation, distinct, empty_folder, write_split

Over = Literal["shapes", "colours", "geometry"]
NoiseOn = Literal["any", "grained"]
GRID = 8
READINGS = 200
GRAIN = 0.7
"""Share of the grain in a grained picture: noise of 0.7 on a signal of 0.3 hides a shape from most looks."""


@dataclass(frozen=True)
class Pair:
    """A picture, a question about it, the right response and one with a single mistake."""

    picture: Scene | Problem
    question: str
    right: str
    wrong: str
    grain: int | None = None
    """Seed of the grain over the picture, None for a clear one."""


def name_of(shape: Shape) -> str:
    """The shape in words, "red square"."""
    return f"{shape.colour} {shape.kind}"


def place_pair(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """Where a shape is; the wrong place is one step away, in its row or in its column."""
    target = scene[0]
    row, column = region(target.cells, GRID).split()
    if rng.random() < 0.5:
        wrong = f"{rng.choice([name for name in ROWS_OF_IMAGE if name != row])} {column}"
    else:
        wrong = f"{row} {rng.choice([name for name in COLUMNS_OF_IMAGE if name != column])}"
    says = f"The {name_of(target)} is at the {{}}."
    return f"Where is the {name_of(target)}?", says.format(f"{row} {column}"), says.format(wrong)


def name_pair(scene: Scene, rng: random.Random, *, part: Literal["colour", "kind"]) -> tuple[str, str, str] | None:
    """What stands at a place, with a wrong colour or kind; None if the place holds more than one shape."""
    target = scene[0]
    place = region(target.cells, GRID)
    if any(region(shape.cells, GRID) == place for shape in scene[1:]):
        return None
    if part == "colour":
        wrong = Shape(rng.choice([colour for colour in COLOURS if colour != target.colour]), target.kind, target.cells)
    else:
        wrong = Shape(target.colour, rng.choice([kind for kind in SHAPES if kind != target.kind]), target.cells)
    return f"What is at the {place}?", f"It is a {name_of(target)}.", f"It is a {name_of(wrong)}."


def count_pair(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """How many shapes there are: three for two and two for three, so that neither number is the likelier one."""
    right, wrong = ("two", "three") if len(scene) == 2 else ("three", "two")
    return "How many shapes are there?", f"There are {right}.", f"There are {wrong}."


def draw_shapes_pair(rng: random.Random, objects: int | None = None) -> Pair:
    """A pair about so many shapes, two or three by default: a wrong place, colour, kind or, by default, number."""
    makers: list[Callable[[Scene, random.Random], tuple[str, str, str] | None]] = [
        place_pair,
        partial(name_pair, part="colour"),
        partial(name_pair, part="kind"),
    ]
    if objects is None:
        makers.append(count_pair)
    while True:
        scene = draw_scene(rng, grid=GRID, objects=objects or rng.choice((2, 3)))
        texts = rng.choice(makers)(scene, rng)
        if texts is not None:
            return Pair(scene, *texts)


def draw_colours_pair(rng: random.Random, objects: int | None = None) -> Pair:
    """A pair about the colour of a shape, one by default, a word each: what a tiny model learns to see and compare."""
    while True:
        target, *others = draw_scene(rng, grid=GRID, objects=objects or 1)
        if all(other.kind != target.kind for other in others):
            wrong = rng.choice([colour for colour in COLOURS if colour != target.colour])
            question = f"What colour is the {target.kind}?"
            return Pair((target, *others), question, f"{target.colour}.", f"{wrong}.")


def misread(problem: Problem, rng: random.Random) -> Problem | None:
    """A problem told alike whose picture has other numbers; None if 200 draws bring none with another answer."""
    places = [place for place, _ in problem.labels]
    for _ in range(READINGS):
        other = draw_problem(rng)
        alike = other.question == problem.question and [place for place, _ in other.labels] == places
        if alike and other.answer != problem.answer:
            return other
    return None


def miscalculate(problem: Problem, rng: random.Random) -> Problem:
    """The problem with a slip in the last result of its solution."""
    answer = rng.choice([problem.answer + step for step in (1, -1, 2, -2, 10, -10) if problem.answer + step > 0])
    last, _, _ = problem.steps[-1].rpartition("=")
    return replace(problem, steps=(*problem.steps[:-1], f"{last}= {answer}"), answer=answer)


def draw_geometry_pair(rng: random.Random) -> Pair:
    """Two solutions of a geometry problem; half of the wrong ones misread the picture, the others slip in the sum."""
    problem = draw_problem(rng)
    wrong = misread(problem, rng) if rng.random() < 0.5 else None
    if wrong is None:
        wrong = miscalculate(problem, rng)
    return Pair(problem, problem.question, _solution(problem), _solution(wrong))


def _solution(problem: Problem) -> str:
    return f"{' '.join(problem.steps)}. The answer is {problem.answer}."


DRAW: dict[str, Callable[..., Pair]] = {
    "shapes": draw_shapes_pair,
    "colours": draw_colours_pair,
    "geometry": draw_geometry_pair,
}


def pair_key(pair: Pair) -> tuple[object, ...]:
    """What makes two pairs alike: the picture (its shapes in any order) and the question."""
    picture = pair.picture
    seen = geometry_task.key(picture) if isinstance(picture, Problem) else frozenset(picture)
    return seen, pair.question


def render(pair: Pair, *, image_size: int) -> Image.Image:
    """Paint the picture of a pair, under its grain if it has one."""
    if isinstance(pair.picture, Problem):
        image = geometry_task.render(pair.picture, image_size=image_size)
    else:
        image = shapes.render(pair.picture, image_size=image_size, grid=GRID)
    if pair.grain is None:
        return image
    grain = Image.frombytes("RGB", image.size, random.Random(pair.grain).randbytes(3 * image.width * image.height))
    return Image.blend(image.convert("RGB"), grain, GRAIN)


def trace(responses: tuple[str, str], label: str) -> str:
    """What the picture shows, by the response that `label` names, and what either response says; then the verdict."""
    return (
        f"<think>{responses[int(label) - 1]} Response 1 says: {responses[0]} Response 2 says: {responses[1]}</think>"
        f"<answer>{label}</answer>"
    )


def pair_row(
    pair: Pair, image: str, row_id: int, *, right_first: bool, is_noisy: bool | None = None, grained: bool = False
) -> dict[str, object]:
    """One VLM-R1 row whose answer is the better response.

    Example:
        {"id": 3, "image": "train-000003.png",
         "conversations": [{"from": "human", "value": "<image>Question: Where is the red square? Response 1: ..."},
                           {"from": "gpt", "value": "2"}],
         "question": "Where is the red square?",
         "responses": ["The red square is at the top left.", "The red square is at the top right."],
         "trace": "<think>The red square is at the top right. Response 1 says: ...</think><answer>2</answer>",
         "is_noisy": false, "is_grained": true}

    The verdict of `trace` is the label of the row, wrong where that is wrong.

    Args:
        pair: the picture and the two texts.
        image: name of the image file.
        row_id: number of the row.
        right_first: whether the right response is response 1.
        is_noisy: whether the label is wrong; None for a file without that column.
        grained: whether to write the column `is_grained`.
    """
    responses = (pair.right, pair.wrong) if right_first else (pair.wrong, pair.right)
    label = "1" if right_first else "2"
    label = flip(label) if is_noisy else label
    return {
        "id": row_id,
        "image": image,
        "conversations": conversation(pairwise_question(pair.question, responses), label),
        "question": pair.question,
        "responses": list(responses),
        "trace": trace(responses, label),
        **({} if is_noisy is None else {"is_noisy": is_noisy}),
        **({"is_grained": pair.grain is not None} if grained else {}),
    }


def wrong_labels(rows: int, noise: float, seed: int, *, among: Sequence[int] | None) -> set[int]:
    """Row numbers of wrong labels: `round(noise * rows)` of all rows, or of those `among` which they are to be.

    Raises:
        ValueError: for a share outside [0, 1], or fewer rows than wrong labels.
    """
    if among is None:
        return set(select_noisy(rows, noise, seed))
    count = len(select_noisy(rows, noise, seed))
    if count > len(among):
        raise ValueError(
            f"noise {noise} asks for {count} wrong labels among grained pictures, of which are {len(among)}"
        )
    return {among[place] for place in select_noisy(len(among), count / len(among) if among else 0.0, seed)}


def make_pairs(
    out_dir: str | Path,
    *,
    rows: int,
    seed: int,
    held_out: int | None = None,
    image_size: int | None = None,
    over: Over = "shapes",
    objects: int | None = None,
    noise: float = 0.0,
    noise_on: NoiseOn = "any",
    grain: float = 0.0,
) -> tuple[Path, Path]:
    """Write `images/*.png`, `train.jsonl` and `heldout.jsonl` under `out_dir`; equal arguments give equal bytes.

    The right response comes first in half of the rows of each file. No two rows have the same picture and question.

    Args:
        out_dir: new or empty folder.
        rows: training rows, >= 1.
        seed: of the pairs, their order, the noise and the grain; independent of Python's global generator.
        held_out: held-out rows, >= 0, never noisy; None means rows // 4.
        image_size: side of the square image in pixels: >= 80 for geometry, else a multiple of 8; None means 96 for
            geometry, else 32.
        over: what the responses are about, `shapes`, the `colours` of single shapes, or `geometry`.
        objects: shapes in each picture, >= 1; fewer are easier. None means one for colours, else two or three, and
            questions of their number. Not for geometry.
        noise: share of wrong labels among the training rows, in [0, 1]; more than 0 adds the column `is_noisy`.
        noise_on: where the wrong labels are: on `any` row alike, or only on `grained` pictures, as of annotators who
            err where it is hard to see.
        grain: share of the pictures of each file, in [0, 1], that heavy grain makes hard to see; more than 0 adds the
            column `is_grained`.

    Returns:
        The paths of the two JSONL files.

    Raises:
        ValueError: for a value that cannot be drawn, or an `out_dir` that is not empty.
    """
    held_out = rows // 4 if held_out is None else held_out
    check_rows(rows, held_out)
    if over not in DRAW:
        raise ValueError(f"over is {over!r}; allowed are {', '.join(DRAW)}")
    if objects is not None and (over == "geometry" or objects < 1):
        raise ValueError(
            f"objects must be at least 1, and only pictures of shapes have them; got {objects} over {over}"
        )
    if noise_on not in get_args(NoiseOn):
        raise ValueError(f"noise_on is {noise_on!r}; allowed are {', '.join(get_args(NoiseOn))}")
    if image_size is None:
        image_size = 96 if over == "geometry" else 32
    if over == "geometry":
        geometry_task.check_size(image_size)
    elif image_size < GRID or image_size % GRID:
        raise ValueError(f"image_size must be a multiple of {GRID}, got {image_size}")
    grained = select_noisy(rows, grain, seed + 1), select_noisy(held_out, grain, seed + 2)
    noisy = wrong_labels(rows, noise, seed, among=grained[0] if noise_on == "grained" else None)
    rng = random.Random(seed)
    options = {} if objects is None else {"objects": objects}
    pairs = distinct(lambda _: DRAW[over](rng, **options), rows + held_out, key=pair_key, advice="use fewer rows")
    orders = balanced(rng, rows), balanced(rng, held_out)
    for place in [*grained[0], *(rows + row for row in grained[1])]:
        pairs[place] = replace(pairs[place], grain=seed + place)
    folder = empty_folder(out_dir)
    paint = partial(render, image_size=image_size)

    def to_row(pair: Pair, image: str, row_id: int, *, order: list[bool], wrong: set[int]) -> dict[str, object]:
        is_noisy = row_id in wrong if noise > 0 else None
        return pair_row(pair, image, row_id, right_first=order[row_id], is_noisy=is_noisy, grained=grain > 0)

    train_row, held_row = partial(to_row, order=orders[0], wrong=noisy), partial(to_row, order=orders[1], wrong=set())
    train = write_split(folder, "train", pairs[:rows], render=paint, to_row=train_row)
    return train, write_split(folder, "heldout", pairs[rows:], render=paint, to_row=held_row)
