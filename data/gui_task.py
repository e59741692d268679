"""GUI grounding: find a button, field, menu or icon on a screen. VLM-R1's rows, and ScreenSpot's files beside them."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from .drawing import Canvas
from .gui_icons import ICONS
from .gui_screens import HEIGHT, LOOKS, Box, Element, Kind, content_box, draw_element, draw_frame, width_of
from .shapes import region
from .tasks import MAX_DRAWS, check_rows, conversation, distinct, empty_folder, write_split

TEXT_KINDS: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(
        ("Save", "Open", "Send", "Copy", "Print", "Login", "Share", "Next", "Back", "Close", "Undo", "Reply", "Apply"),
        ("button",),
    ),
    **dict.fromkeys(("Name", "Email", "City", "Phone", "Search", "Date", "Title", "Price"), ("field",)),
    **dict.fromkeys(("File", "Edit", "View", "Tools", "Help", "Pages"), ("menu",)),
}
"""The kinds a label appears as. No two widgets of a screen have the same label."""
PLATFORMS = ("mobile", "desktop", "web")
MIN_SIZE = 64
UNITS = 160
PITCH, GAP = HEIGHT + 4, 4


@dataclass(frozen=True)
class Screen:
    """A screen of `units` by `units`; the first element is the one asked for. `quiet` elements have no strong fill."""

    source: str
    units: int
    elements: tuple[Element, ...]
    quiet: frozenset[str]


def zoom_of(image_size: int) -> int:
    """Pixels per unit: 1 below 320 pixels, then one more for each 160, so that letters stay in proportion."""
    return max(1, image_size // UNITS)


def draw_names(rng: random.Random, count: int, data_type: str) -> list[tuple[Kind, str]]:
    """Kind and name of `count` widgets, no name twice, the first of type `data_type`, the others half and half."""
    texts, icons = rng.sample(list(TEXT_KINDS), len(TEXT_KINDS)), rng.sample(list(ICONS), len(ICONS))
    types = [data_type, *(rng.choice(("text", "icon")) for _ in range(count - 1))]
    names: list[tuple[Kind, str]] = []
    for kind in types:
        label = (icons if kind == "icon" else texts).pop()
        names.append(("icon" if kind == "icon" else rng.choice(TEXT_KINDS[label]), label))
    return names


def flow(rng: random.Random, widths: Sequence[int], room: Box) -> list[Box] | None:
    """Boxes of these widths in lines from left to right, top to bottom, at random places; None if they do not fit.

    All left and top edges are those of `room` plus an even number of units.
    """
    lines: list[list[int]] = [[]]
    width = room[2] - room[0]
    for index, own in enumerate(widths):
        used = sum(widths[i] + GAP for i in lines[-1])
        if lines[-1] and (used + own > width or rng.random() < 0.2):
            lines.append([])
        lines[-1].append(index)
    free = (room[3] - room[1] - len(lines) * PITCH + GAP) // 2
    if free < 0 or max(widths) > width:
        return None
    boxes: dict[int, Box] = {}
    drops = sorted(rng.choices(range(free + 1), k=len(lines)))
    for number, (line, drop) in enumerate(zip(lines, drops, strict=True)):
        slack = (width - sum(widths[i] for i in line) - GAP * (len(line) - 1)) // 2
        x, top = room[0] + 2 * rng.randint(0, slack), room[1] + number * PITCH + 2 * drop
        for index in line:
            boxes[index] = (x, top, x + widths[index], top + HEIGHT)
            x += widths[index] + GAP
    return [boxes[index] for index in range(len(widths))]


def draw_screen(rng: random.Random, *, place: int, elements: int, image_size: int) -> Screen:
    """A screen; any six places in a row have each of ScreenSpot's six cells (platform by data type) once.

    Raises:
        ValueError: if that many elements do not fit.
    """
    platform = PLATFORMS[place % 3]
    source = rng.choice([name for name, look in LOOKS.items() if look.platform == platform])
    units = image_size // zoom_of(image_size)
    for _ in range(MAX_DRAWS):
        names = draw_names(rng, elements, ("text", "icon")[place // 3 % 2])
        order = rng.sample(range(elements), elements)
        boxes = flow(rng, [width_of(*names[i]) for i in order], content_box(LOOKS[source], units))
        if boxes is not None:
            box_of = dict(zip(order, boxes, strict=True))
            widgets = tuple(Element(kind, name, box_of[i]) for i, (kind, name) in enumerate(names))
            quiet = frozenset(name for _, name in names if rng.random() < 0.5)
            return Screen(source, units, widgets, quiet)
    raise ValueError(f"found no room for {elements} elements on a screen of {image_size} pixels: use fewer elements")


def render(screen: Screen, *, image_size: int) -> Image.Image:
    """Paint the screen."""
    zoom = zoom_of(image_size)
    canvas = Canvas((image_size, image_size), unit=image_size / screen.units)
    look = LOOKS[screen.source]
    draw_frame(canvas, look, screen.units)
    for element in screen.elements:
        draw_element(canvas, element, look, zoom=zoom, quiet=element.name in screen.quiet)
    return canvas.picture()


def instruction(element: Element) -> str:
    """The command in words, "Click the Save button." or "Click the gear icon."."""
    return f"Click the {element.name} {element.kind}."


def data_type(element: Element) -> Literal["text", "icon"]:
    """ScreenSpot's type of a target."""
    return "icon" if element.kind == "icon" else "text"


def pixel_box(screen: Screen, image_size: int) -> list[int]:
    """The target's xyxy box in pixels, the end excluded."""
    return [edge * image_size // screen.units for edge in screen.elements[0].box]


def screen_row(screen: Screen, image: str, row_id: int, *, image_size: int) -> dict[str, object]:
    """One VLM-R1 row, with the gold box in pixels of the file.

    Example:
        {"id": 3, "image": "train-000003.png",
         "conversations": [{"from": "human", "value": "<image>Click the gear icon."},
                           {"from": "gpt", "value": "[62, 40, 76, 54]"}],
         "platform": "mobile", "data_source": "ios", "data_type": "icon", "action": "click",
         "response": "<think>middle right</think><answer>{box}</answer>",
         "click_response": "<think>middle right</think><answer>[{'action': 'click', 'coordinate': {point}}]</answer>"}

    `{box}` and `{point}` stand for the gold box and its middle in the model's own coordinates.
    """
    target = screen.elements[0]
    think = f"<think>{region(target.box, screen.units)}</think>"
    return {
        "id": row_id,
        "image": image,
        "conversations": conversation(instruction(target), str(pixel_box(screen, image_size))),
        "platform": LOOKS[screen.source].platform,
        "data_source": screen.source,
        "data_type": data_type(target),
        "action": "click",
        "response": f"{think}<answer>{{box}}</answer>",
        "click_response": f"{think}<answer>[{{'action': 'click', 'coordinate': {{point}}}}]</answer>",
    }


def write_screenspot(folder: Path, screens: Sequence[Screen], *, image_size: int) -> None:
    """Write the held-out screens as ScreenSpot lies on disk: three JSON files with xywh boxes, and the images."""
    out = folder / "screenspot"
    (out / "screenspot_imgs").mkdir(parents=True)
    records: dict[str, list[dict[str, object]]] = {platform: [] for platform in PLATFORMS}
    for number, screen in enumerate(screens):
        name = f"heldout-{number:06d}.png"
        shutil.copyfile(folder / "images" / name, out / "screenspot_imgs" / name)
        x1, y1, x2, y2 = pixel_box(screen, image_size)
        target = screen.elements[0]
        records[LOOKS[screen.source].platform].append(
            {
                "img_filename": name,
                "instruction": instruction(target),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "data_type": data_type(target),
                "data_source": screen.source,
            }
        )
    for platform, entries in records.items():
        text = json.dumps(entries, indent=1) + "\n"
        (out / f"screenspot_{platform}.json").write_text(text, encoding="utf-8", newline="\n")


def make_gui(
    out_dir: str | Path,
    *,
    rows: int,
    seed: int,
    held_out: int | None = None,
    image_size: int = 96,
    elements: int = 4,
) -> tuple[Path, Path]:
    """Write `images/*.png`, `train.jsonl`, `heldout.jsonl` and `screenspot/`; equal arguments give equal bytes.

    `screenspot/` has the held-out rows in ScreenSpot's own format. No two screens are alike, and no two widgets of a
    screen have the same name, so every instruction names exactly one. Widgets are 14 units high, and a unit is
    `image_size // 160` pixels, at least one.

    Args:
        out_dir: new or empty folder.
        rows: training rows, >= 1.
        seed: of the screens; independent of Python's global generator.
        held_out: held-out rows, >= 0; None means rows // 4. Six or more fill all cells of ScreenSpot's report.
        image_size: side of the square screen in pixels, >= 64, and a multiple of its pixels per unit.
        elements: widgets on each screen, 1 to 17; all but one are distractors.

    Returns:
        The paths of the two JSONL files.

    Raises:
        ValueError: for a value that cannot be drawn, or an `out_dir` that is not empty.
    """
    held_out = rows // 4 if held_out is None else held_out
    check_rows(rows, held_out)
    if image_size < MIN_SIZE or image_size % zoom_of(image_size):
        raise ValueError(
            f"image_size must be at least {MIN_SIZE} and a multiple of {zoom_of(image_size)} (pixels per unit), "
            f"got {image_size}"
        )
    if not 1 <= elements <= len(ICONS):
        raise ValueError(f"elements must be between 1 and {len(ICONS)}, got {elements}")
    rng = random.Random(seed)
    screens = distinct(
        lambda place: draw_screen(rng, place=place, elements=elements, image_size=image_size),
        rows + held_out,
        key=lambda screen: (screen.source, frozenset(screen.elements)),
        advice="use more elements or a larger image",
    )
    folder = empty_folder(out_dir)
    paint, to_row = partial(render, image_size=image_size), partial(screen_row, image_size=image_size)
    train = write_split(folder, "train", screens[:rows], render=paint, to_row=to_row)
    held = write_split(folder, "heldout", screens[rows:], render=paint, to_row=to_row)
    write_screenspot(folder, screens[rows:], image_size=image_size)
    return train, held
