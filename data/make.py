"""`python -m vlm_entropy.data make`: write one of the synthetic tasks."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .classes_task import make_classes
from .geometry_task import make_geometry
from .gui_task import make_gui
from .pairs_task import make_pairs
from .shapes import make_shapes

TASKS: dict[str, Callable[..., tuple[Path, Path]]] = {
    "shapes": make_shapes,
    "gui": make_gui,
    "classes": make_classes,
    "geometry": make_geometry,
    "pairs": make_pairs,
}


@dataclass
class MakeArguments:
    """Write a synthetic task: PNG images, `train.jsonl` and `heldout.jsonl` in VLM-R1's format."""

    task: Literal["shapes", "gui", "classes", "geometry", "pairs"] = field(
        metadata={
            "help": "shapes: the box of a coloured shape. gui: the element of a screen that an instruction names. "
            "classes: the name of a flower among similar ones. geometry: the number that a figure gives. pairs: the "
            "better of two responses."
        }
    )
    out: str = field(metadata={"help": "New or empty folder to write to."})
    rows: int | None = field(
        default=None,
        metadata={"help": "Training rows, at least 1; more make the training set harder to memorise."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the scenes; the same flags write the same bytes."})
    held_out: int | None = field(
        default=None,
        metadata={"help": "Held-out rows, at least 0; more make the evaluation less noisy. Default: a quarter."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the square images in pixels; larger is slower. Default: the task's."}
    )
    grid: int | None = field(
        default=None,
        metadata={"help": "shapes: cells along a side; boxes lie on cell edges, a finer grid is harder. Default 8."},
    )
    objects: int | None = field(
        default=None,
        metadata={"help": "shapes, pairs: shapes in each image, 1 to 12; more are harder. Default 2; pairs 2 or 3."},
    )
    elements: int | None = field(
        default=None, metadata={"help": "gui: widgets on each screen, 1 to 17; more are harder. Default 4."}
    )
    classes: int | None = field(
        default=None, metadata={"help": "classes: how many there are, 2 to 100; more are harder. Default 8."}
    )
    shots: int | None = field(
        default=None, metadata={"help": "classes: training rows of each class, in place of --rows."}
    )
    over: Literal["shapes", "colours", "geometry"] | None = field(
        default=None,
        metadata={"help": "pairs: what the responses are about, colours the easiest. Default shapes."},
    )
    noise: float | None = field(
        default=None, metadata={"help": "pairs: share of training rows with the wrong label, 0 to 1. Default 0."}
    )
    noise_on: Literal["any", "grained"] | None = field(
        default=None,
        metadata={"help": "pairs: wrong labels on any row, or only where it is hard to see. Default any."},
    )
    grain: float | None = field(
        default=None, metadata={"help": "pairs: share of pictures that grain makes hard to see, 0 to 1. Default 0."}
    )


def run(arguments: MakeArguments) -> str:
    """Write the task that `arguments` describe; return the lines to print.

    Raises:
        ValueError: for a flag that the task does not take, a missing one, or a value that cannot be drawn.
    """
    write = TASKS[arguments.task]
    given = {name: value for name, value in vars(arguments).items() if name not in ("task", "out")}
    given = {name: value for name, value in given.items() if value is not None}
    parameters = inspect.signature(write).parameters
    for name in given:
        if name not in parameters:
            raise ValueError(f"--{name} is no flag of the task {arguments.task!r}.")
    if "rows" not in given and parameters["rows"].default is inspect.Parameter.empty:
        raise ValueError(f"--rows is missing: how many training rows of the task {arguments.task!r} to write.")
    paths = write(arguments.out, **given)
    return "\n".join(f"wrote {path}: {sum(1 for _ in path.open())} rows" for path in paths)
