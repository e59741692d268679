"""Icons of the GUI task: each a list of filled forms on a field of 24 by 24, painted in ink or in the background.

None of them looks like a part of the frames in `gui_screens`, so a name such as "star" means one thing on a screen.
"""

from .drawing import Canvas, Colour, Frame, Spot

Form = tuple[str, tuple[float, ...]]
"""(kind, numbers): `ellipse` and `box` have x1, y1, x2, y2, `polygon` has x, y, x, y, ... A kind that starts with
"-" is painted in the background's colour: a hole."""

ICONS: dict[str, tuple[Form, ...]] = {
    "gear": (
        ("box", (10, 1, 14, 23)),
        ("box", (1, 10, 23, 14)),
        ("polygon", (5.6, 2.8, 21.2, 18.4, 18.4, 21.2, 2.8, 5.6)),
        ("polygon", (18.4, 2.8, 21.2, 5.6, 5.6, 21.2, 2.8, 18.4)),
        ("ellipse", (4, 4, 20, 20)),
        ("-ellipse", (8, 8, 16, 16)),
    ),
    "house": (
        ("polygon", (12, 1, 23, 12, 1, 12)),
        ("box", (4, 11, 20, 22)),
        ("-box", (10, 14, 14, 22)),
    ),
    "magnifier": (
        ("polygon", (13, 16, 16, 13, 23, 20, 20, 23)),
        ("ellipse", (1, 1, 18, 18)),
        ("-ellipse", (4.5, 4.5, 14.5, 14.5)),
    ),
    "bin": (
        ("box", (9, 1, 15, 4)),
        ("box", (3, 3, 21, 6)),
        ("polygon", (5, 8, 19, 8, 18, 23, 6, 23)),
        ("-box", (9, 10, 11, 21)),
        ("-box", (13, 10, 15, 21)),
    ),
    "heart": (
        ("ellipse", (1, 2, 13, 14)),
        ("ellipse", (11, 2, 23, 14)),
        ("polygon", (2, 11, 22, 11, 12, 23)),
    ),
    "star": (("polygon", (12, 1, 15, 9, 23, 9, 17, 14, 19, 23, 12, 18, 5, 23, 7, 14, 1, 9, 9, 9)),),
    "envelope": (
        ("box", (1, 4, 23, 20)),
        ("-polygon", (1, 5, 12, 14, 23, 5, 23, 8, 12, 17, 1, 8)),
    ),
    "bell": (
        ("ellipse", (10, 1, 14, 5)),
        ("ellipse", (5, 3, 19, 17)),
        ("polygon", (5, 10, 19, 10, 22, 19, 2, 19)),
        ("ellipse", (9, 18, 15, 23)),
    ),
    "lock": (
        ("ellipse", (5, 1, 19, 17)),
        ("-ellipse", (8.5, 4.5, 15.5, 15)),
        ("box", (3, 11, 21, 23)),
        ("-ellipse", (10, 14, 14, 18)),
        ("-box", (11, 16, 13, 21)),
    ),
    "plus": (("box", (10, 2, 14, 22)), ("box", (2, 10, 22, 14))),
    "play": (("polygon", (4, 1, 22, 12, 4, 23)),),
    "folder": (
        ("box", (1, 3, 10, 9)),
        ("box", (1, 6, 23, 21)),
        ("-box", (1, 9, 23, 10.5)),
    ),
    "cloud": (
        ("ellipse", (1, 9, 12, 20)),
        ("ellipse", (6, 3, 18, 17)),
        ("ellipse", (13, 9, 23, 20)),
        ("box", (6, 12, 18, 20)),
    ),
    "person": (("ellipse", (7, 1, 17, 11)), ("ellipse", (2, 12, 22, 23)), ("box", (2, 17, 22, 23))),
    "clock": (
        ("ellipse", (1, 1, 23, 23)),
        ("-ellipse", (4, 4, 20, 20)),
        ("box", (11, 6, 13, 13)),
        ("box", (11, 11, 18, 13)),
    ),
    "camera": (
        ("box", (8, 2, 16, 7)),
        ("box", (1, 5, 23, 21)),
        ("-ellipse", (6, 7, 18, 19)),
        ("ellipse", (9, 10, 15, 16)),
    ),
    "flag": (("box", (3, 1, 6, 23)), ("polygon", (6, 2, 22, 7, 6, 13))),
}


def draw_icon(canvas: Canvas, name: str, frame: Frame, *, ink: Colour, background: Colour) -> None:
    """Paint the icon `name` into `frame`."""
    left, top, right, bottom = frame
    x_scale, y_scale = (right - left) / 24, (bottom - top) / 24
    for kind, numbers in ICONS[name]:
        spots: list[Spot] = [
            (left + x * x_scale, top + y * y_scale) for x, y in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        fill = background if kind.startswith("-") else ink
        match kind.removeprefix("-"):
            case "polygon":
                canvas.polygon(spots, fill)
            case "ellipse":
                canvas.ellipse((*spots[0], *spots[1]), fill)
            case "box":
                canvas.rectangle((*spots[0], *spots[1]), fill)
