"""Smooth shapes and fixed letters for the synthetic tasks: the same pixels on every machine, without system fonts.

Shapes are painted on a canvas four times as wide and averaged; text is Pillow's built-in bitmap font, 6x11 pixels a
letter, enlarged by whole numbers.
"""

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Spot = tuple[float, float]
Frame = tuple[float, float, float, float]

SMOOTHING = 4
LETTER_WIDTH, LETTER_HEIGHT = 6, 11


@cache
def _letters(text: str, zoom: int) -> Image.Image:
    """The mask of a text, mode L, LETTER_WIDTH * zoom pixels a letter."""
    mask = Image.new("L", (LETTER_WIDTH * len(text), LETTER_HEIGHT), 0)
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=ImageFont.load_default_imagefont())
    return mask.resize((mask.width * zoom, mask.height * zoom), Image.Resampling.NEAREST)


class Canvas:
    """A picture in the making; all coordinates are in units of which one is `unit` pixels, the end excluded."""

    def __init__(self, size: tuple[int, int], *, unit: float = 1.0, background: Colour = (255, 255, 255)):
        self.size = size
        self.scale = unit * SMOOTHING
        self.image = Image.new("RGB", (size[0] * SMOOTHING, size[1] * SMOOTHING), background)
        self.draw = ImageDraw.Draw(self.image)
        self.texts: list[tuple[tuple[int, int], Image.Image, Colour]] = []

    def _frame(self, frame: Frame) -> tuple[int, int, int, int]:
        left, top, right, bottom = (round(edge * self.scale) for edge in frame)
        return left, top, max(left, right - 1), max(top, bottom - 1)

    def _spots(self, spots: Sequence[Spot]) -> list[tuple[int, int]]:
        return [(round(x * self.scale), round(y * self.scale)) for x, y in spots]

    def rectangle(self, frame: Frame, fill: Colour, *, radius: float = 0.0, line: Colour | None = None) -> None:
        """A rectangle with round corners, and a border of one unit inside it."""
        if line is not None:
            self.rectangle(frame, line, radius=radius)
            inner = (frame[0] + 1, frame[1] + 1, frame[2] - 1, frame[3] - 1)
            self.rectangle(inner, fill, radius=max(0.0, radius - 1))
        else:
            self.draw.rounded_rectangle(self._frame(frame), round(radius * self.scale), fill=fill)

    def ellipse(self, frame: Frame, fill: Colour) -> None:
        self.draw.ellipse(self._frame(frame), fill=fill)

    def ring(self, frame: Frame, line: Colour, *, width: float) -> None:
        self.draw.ellipse(self._frame(frame), outline=line, width=round(width * self.scale))

    def polygon(self, spots: Sequence[Spot], fill: Colour) -> None:
        self.draw.polygon(self._spots(spots), fill=fill)

    def line(self, spots: Sequence[Spot], fill: Colour, *, width: float) -> None:
        """A line with round ends and joints."""
        self.draw.line(self._spots(spots), fill=fill, width=round(width * self.scale))
        for x, y in spots:
            self.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill)

    def text(self, corner: Spot, text: str, fill: Colour, *, zoom: int = 1) -> None:
        """Text with its top left corner at `corner`; letters are 6 * zoom by 11 * zoom pixels, whatever the unit."""
        x, y = (round(side * self.scale / SMOOTHING) for side in corner)
        self.texts.append(((x, y), _letters(text, zoom), fill))

    def picture(self) -> Image.Image:
        """The finished picture; text lies on top of all shapes."""
        image = self.image.reduce(SMOOTHING)
        for corner, mask, fill in self.texts:
            image.paste(fill, corner, mask)
        return image
