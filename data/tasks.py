"""What all synthetic tasks share: scenes without repeats, and the files that hold them."""

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

MAX_DRAWS = 1000
Scene = TypeVar("Scene")


def check_rows(rows: int, held_out: int) -> None:
    """Raise ValueError, naming the value, unless rows >= 1 and held_out >= 0."""
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    if held_out < 0:
        raise ValueError(f"held_out must be at least 0, got {held_out}")


def distinct(
    draw: Callable[[int], Scene], count: int, *, key: Callable[[Scene], Hashable], advice: str
) -> list[Scene]:
    """`count` scenes, no two with the same key.

    Args:
        draw: `draw(i)` draws a scene for place i, as often as it is called.
        key: what makes two scenes alike.
        advice: what to do when there are too few scenes, "use a finer grid".

    Raises:
        ValueError: if 1000 draws in a row bring nothing new.
    """
    scenes: dict[Hashable, Scene] = {}
    for place in range(count):
        fresh = (draw(place) for _ in range(MAX_DRAWS))
        scene = next((scene for scene in fresh if key(scene) not in scenes), None)
        if scene is None:
            raise ValueError(f"found only {len(scenes)} different scenes of {count}: {advice}")
        scenes[key(scene)] = scene
    return list(scenes.values())


def empty_folder(out_dir: str | Path) -> Path:
    """Create `out_dir` and its `images`; an existing folder must be empty, so that no old row is mixed in."""
    folder = Path(out_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out_dir must be a new or an empty folder, got {folder}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    return folder


def write_split(
    folder: Path,
    split: str,
    scenes: Sequence[Scene],
    *,
    render: Callable[[Scene], Image.Image],
    to_row: Callable[[Scene, str, int], dict[str, object]],
) -> Path:
    """Write the images and the JSONL file of one split; return the path of the latter.

    Args:
        folder: what `empty_folder` made.
        split: "train" or "heldout".
        scenes: one per row.
        render: the picture of a scene.
        to_row: `to_row(scene, image name, row number)`, the row as it is written.
    """
    path = folder / f"{split}.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as lines:
        for row_id, scene in enumerate(scenes):
            name = f"{split}-{row_id:06d}.png"
            render(scene).save(folder / "images" / name)
            lines.write(json.dumps(to_row(scene, name, row_id)) + "\n")
    return path


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    """The two turns of VLM-R1's format, about one image."""
    return [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
