"""The looks of the GUI task: eight sources of four kinds, their frames around the content, and their widgets."""

from dataclasses import dataclass
from typing import Literal

from .drawing import LETTER_HEIGHT, LETTER_WIDTH, Canvas, Colour
from .gui_icons import draw_icon

Box = tuple[int, int, int, int]
Kind = Literal["button", "field", "menu", "icon"]
HEIGHT = 14
ICON_PADDING = 2
WHITE, DARK, GREY, PALE = (255, 255, 255), (40, 40, 48), (125, 125, 135), (232, 233, 238)
BORDER = (160, 162, 172)


@dataclass(frozen=True)
class Look:
    """Colours and frame of one data source of ScreenSpot."""

    platform: Literal["mobile", "desktop", "web"]
    frame: Literal["windows", "macos", "ios", "android", "browser"]
    accent: Colour
    background: Colour
    radius: float


LOOKS: dict[str, Look] = {
    "ios": Look("mobile", "ios", (0, 122, 255), (242, 242, 247), 5),
    "android": Look("mobile", "android", (103, 80, 164), (254, 247, 255), 7),
    "windows": Look("desktop", "windows", (0, 103, 192), (243, 243, 243), 2),
    "macos": Look("desktop", "macos", (0, 110, 220), (246, 246, 246), 4),
    "gitlab": Look("web", "browser", (226, 67, 41), WHITE, 2),
    "shop": Look("web", "browser", (20, 140, 90), (250, 250, 246), 1),
    "forum": Look("web", "browser", (200, 80, 20), (238, 242, 246), 6),
    "tool": Look("web", "browser", (90, 70, 200), (248, 248, 252), 3),
}


@dataclass(frozen=True)
class Element:
    """One widget; `box` is its xyxy box in units, the end excluded. Its kind and name say how it is asked for."""

    kind: Kind
    name: str
    box: Box


def width_of(kind: Kind, name: str) -> int:
    """Width of a widget in units, a multiple of 2."""
    if kind == "icon":
        return HEIGHT
    return len(name) * LETTER_WIDTH + {"button": 8, "field": 16, "menu": 14}[kind]


def content_box(look: Look, size: int) -> Box:
    """What the frame leaves free for widgets on a screen of `size` units."""
    return {
        "windows": (6, 16, size - 6, size - 12),
        "macos": (6, 20, size - 6, size - 6),
        "ios": (4, 12, size - 4, size - 6),
        "android": (4, 14, size - 4, size - 10),
        "browser": (4, 24, size - 4, size - 2),
    }[look.frame]


def draw_frame(canvas: Canvas, look: Look, size: int) -> None:
    """Paint everything but the widgets."""
    {
        "windows": _windows,
        "macos": _macos,
        "ios": _ios,
        "android": _android,
        "browser": _browser,
    }[look.frame](canvas, look, size)


def _windows(canvas: Canvas, look: Look, size: int) -> None:
    canvas.rectangle((0, 0, size, size), (64, 134, 196))
    canvas.ellipse((size * 0.3, size * 0.3, size * 1.4, size * 1.4), (88, 160, 214))
    canvas.rectangle((0, size - 8, size, size), (28, 34, 48))
    middle = size // 2
    for x in (middle - 3, middle + 0.5):
        for y in (size - 7, size - 3.5):
            canvas.rectangle((x, y, x + 2.5, y + 2.5), (90, 190, 255))
    canvas.rectangle((2, 2, size - 2, size - 10), look.background, radius=2, line=BORDER)
    canvas.rectangle((3, 3, size - 3, 13), WHITE)
    canvas.line(((size - 24, 8), (size - 20, 8)), DARK, width=1)
    canvas.rectangle((size - 17, 6, size - 12, 11), WHITE, line=DARK)
    canvas.line(((size - 8, 6), (size - 5, 10)), DARK, width=1)
    canvas.line(((size - 5, 6), (size - 8, 10)), DARK, width=1)
    canvas.rectangle((6, 5, 12, 11), look.accent, radius=1)


def _macos(canvas: Canvas, look: Look, size: int) -> None:
    canvas.rectangle((0, 0, size, size), (122, 86, 160))
    canvas.ellipse((-size * 0.4, size * 0.4, size * 0.8, size * 1.6), (214, 110, 140))
    canvas.rectangle((0, 0, size, 5), (240, 236, 244))
    canvas.ellipse((3, 1, 6, 4), DARK)
    for x in (10, 20):
        canvas.rectangle((x, 2, x + 7, 3.5), GREY)
    canvas.rectangle((2, 7, size - 2, size - 2), look.background, radius=5, line=BORDER)
    canvas.rectangle((3, 8, size - 3, 17), (226, 225, 228), radius=4)
    for x, colour in ((7, (255, 95, 86)), (14, (255, 189, 46)), (21, (39, 201, 63))):
        canvas.ellipse((x, 10, x + 5, 15), colour)


def _ios(canvas: Canvas, look: Look, size: int) -> None:
    canvas.rectangle((0, 0, size, size), look.background)
    middle = size / 2
    canvas.rectangle((middle - 11, 2, middle + 11, 8), (10, 10, 12), radius=3)
    for step in range(3):
        canvas.rectangle((5 + 3 * step, 7 - 2 * step, 7 + 3 * step, 9), DARK)
    canvas.rectangle((size - 15, 3, size - 5, 8), WHITE, radius=1.5, line=DARK)
    canvas.rectangle((size - 14, 4, size - 9, 7), (60, 190, 90))
    canvas.rectangle((middle - 14, size - 4, middle + 14, size - 2), DARK, radius=1)


def _android(canvas: Canvas, look: Look, size: int) -> None:
    canvas.rectangle((0, 0, size, size), look.background)
    canvas.rectangle((0, 0, size, 11), look.accent)
    for y in (3, 5.5, 8):
        canvas.line(((5, y), (12, y)), WHITE, width=1)
    for y in (2.5, 5, 7.5):
        canvas.ellipse((size - 7, y, size - 5, y + 2), WHITE)
    canvas.rectangle((0, size - 8, size, size), (235, 226, 242))
    middle = size / 2
    canvas.polygon(((middle - 18, size - 4), (middle - 13, size - 7), (middle - 13, size - 1)), DARK)
    canvas.ring((middle - 3, size - 7, middle + 3, size - 1), DARK, width=1)
    canvas.rectangle((middle + 13, size - 7, middle + 19, size - 1), (235, 226, 242), radius=1, line=DARK)


def _browser(canvas: Canvas, look: Look, size: int) -> None:
    canvas.rectangle((0, 0, size, size), look.background)
    canvas.rectangle((0, 0, size, 12), (214, 218, 226))
    canvas.polygon(((3, 6), (7, 3), (7, 9)), GREY)
    canvas.ring((9, 3, 15, 9), GREY, width=1.5)
    canvas.rectangle((18, 2, size - 4, 10), WHITE, radius=4)
    canvas.rectangle((23, 5, 23 + size / 3, 7), (190, 194, 204), radius=1)
    canvas.rectangle((0, 12, size, 21), look.accent)
    canvas.polygon(((5, 19), (9, 14), (13, 19)), WHITE)
    for x in (18, 30):
        canvas.rectangle((x, 15.5, x + 9, 17.5), tuple((channel + 255) // 2 for channel in look.accent))  # type: ignore[arg-type]


def draw_element(canvas: Canvas, element: Element, look: Look, *, zoom: int, quiet: bool) -> None:
    """Paint one widget; every one touches all four sides of its box.

    Args:
        canvas: to paint on, one unit `zoom` pixels.
        element: what and where.
        look: of the screen.
        zoom: of the letters.
        quiet: a button or icon without fill, as beside the main one.
    """
    left, top, right, bottom = element.box
    baseline = top + (HEIGHT - LETTER_HEIGHT + 1) // 2
    match element.kind:
        case "button":
            if quiet:
                canvas.rectangle(element.box, WHITE, radius=look.radius, line=look.accent)
            else:
                canvas.rectangle(element.box, look.accent, radius=look.radius)
            canvas.text((left + 4, baseline), element.name, look.accent if quiet else WHITE, zoom=zoom)
        case "field":
            canvas.rectangle(element.box, WHITE, radius=min(look.radius, 3), line=BORDER)
            canvas.rectangle((left, bottom - 1, right, bottom), look.accent)
            canvas.line(((left + 4, top + 3.5), (left + 4, bottom - 3.5)), DARK, width=1)
            canvas.text((left + 7, baseline), element.name, GREY, zoom=zoom)
        case "menu":
            canvas.rectangle(element.box, PALE, radius=min(look.radius, 3))
            canvas.text((left + 3, baseline), element.name, DARK, zoom=zoom)
            canvas.polygon(((right - 9, top + 5), (right - 2, top + 5), (right - 5.5, top + 9.5)), DARK)
        case "icon":
            fill, ink = (PALE, DARK) if quiet else (look.accent, WHITE)
            canvas.rectangle(element.box, fill, radius=min(look.radius, 4))
            inside = (left + ICON_PADDING, top + ICON_PADDING, right - ICON_PADDING, bottom - ICON_PADDING)
            draw_icon(canvas, element.name, inside, ink=ink, background=fill)
