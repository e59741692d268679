"""The image tensors of each model family as pictures in [0, 1], and back.

A picture is what the processor keeps of an image after resizing it: a (3, height, width) tensor whose values are grey
levels k/255, 1 being full intensity. As an image it passes through the processor unchanged, so a change made to it is
what the model sees, or any other engine that takes images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

Grid = tuple[int, int]
"""(rows, columns) of an image: patches for Qwen, tiles for InternVL."""
ImageFields = dict[str, Tensor]
"""The part of the processor's tensors that belongs to one image."""
IMAGE_FIELDS = ("pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class PixelLayout:
    """How an image processor turns a picture into its rows of `pixel_values`; the subclasses know the order.

    Raises:
        ValueError: for a processor that does not take 8-bit grey levels to [0, 1].
    """

    image_processor: Any

    def __post_init__(self) -> None:
        factor = self.image_processor.rescale_factor if self.image_processor.do_rescale else 1.0
        if not math.isclose(255 * factor, 1.0):
            raise ValueError(f"The image processor multiplies grey levels by {factor}; only 1/255 is supported.")

    def grids(self, images: Sequence[Image.Image], fields: dict[str, Any]) -> list[Grid]:
        """The grid of each image, in the order of `pixel_values`."""
        raise NotImplementedError

    def num_rows(self, grid: Grid) -> int:
        """How many rows of `pixel_values` an image of this grid takes."""
        raise NotImplementedError

    def picture(self, pixel_values: Tensor, grid: Grid) -> Tensor:
        """(3, height, width) in [0, 1], whole grey levels, from the rows of `pixel_values` of one image."""
        raise NotImplementedError

    def pixel_values(self, picture: Tensor) -> Tensor:
        """The inverse of `picture`, differentiable: every pixel gets the gradients of all its copies."""
        raise NotImplementedError

    def process(self, images: list[Image.Image]) -> list[ImageFields]:
        """What the processor makes of each image."""
        raise NotImplementedError

    def normalise(self, picture: Tensor) -> Tensor:
        mean, std = self._mean_and_std(picture)
        return (picture - mean) / std

    def denormalise(self, values: Tensor) -> Tensor:
        mean, std = self._mean_and_std(values)
        return ((values * std + mean) * 255).round().clamp(0, 255) / 255

    def _mean_and_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        processor = self.image_processor
        pair = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        mean, std = (torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1) for values in pair)
        return mean, std


class QwenLayout(PixelLayout):
    """Patches in the order of their merge cells, each repeated over the frames of a temporal patch.

    `pixel_values` of an image is (rows · columns, 3 · frames · patch · patch).
    """

    def grids(self, images: Sequence[Image.Image], fields: dict[str, Any]) -> list[Grid]:
        return [(rows, columns) for _, rows, columns in fields["image_grid_thw"].tolist()]

    def num_rows(self, grid: Grid) -> int:
        return grid[0] * grid[1]

    def picture(self, pixel_values: Tensor, grid: Grid) -> Tensor:
        patch, merge, frames = self._sizes()
        rows, columns = grid
        cells = pixel_values.view(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)[..., 0, :, :]
        return self.denormalise(cells.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch))

    def pixel_values(self, picture: Tensor) -> Tensor:
        patch, merge, frames = self._sizes()
        rows, columns = (side // patch for side in picture.shape[1:])
        split = self.normalise(picture).view(3, rows // merge, merge, patch, columns // merge, merge, patch)
        cells = split.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
        return cells.expand(-1, -1, -1, -1, -1, frames, -1, -1).reshape(rows * columns, 3 * frames * patch**2)

    def process(self, images: list[Image.Image]) -> list[ImageFields]:
        fields = self.image_processor(images=images, return_tensors="pt")
        grids = fields["image_grid_thw"]
        parts = fields["pixel_values"].split(grids.prod(dim=1).tolist())
        return [{"pixel_values": part, "image_grid_thw": grid[None]} for part, grid in zip(parts, grids, strict=True)]

    def _sizes(self) -> tuple[int, int, int]:
        processor = self.image_processor
        return processor.patch_size, processor.merge_size, processor.temporal_patch_size


class InternVLLayout(PixelLayout):
    """Square tiles, row by row, and a thumbnail of the whole where there is more than one.

    `pixel_values` of an image is (tiles, 3, side, side). The picture is the grid of tiles. The processor made the
    thumbnail of the image itself, and makes the next one of the picture: `pixel_values` resizes the picture for it, so
    that a change reaches the thumbnail and the thumbnail's gradient reaches the picture.

    Raises:
        ValueError: if the processor could cut a picture into another grid than the image it comes from.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        most, (height, width) = self.image_processor.max_patches, self._tile()
        for rows in range(1, most + 1):
            for columns in range(1, most // rows + 1):
                again = self._grid((rows * height, columns * width))
                if rows * columns >= self.image_processor.min_patches and again != (rows, columns):
                    raise ValueError(
                        f"With up to {most} tiles the processor may cut {rows} x {columns} tiles again into "
                        f"{again[0]} x {again[1]}; set max_anyres_num to {again[0] * again[1] - 1} or less."
                    )

    def grids(self, images: Sequence[Image.Image], fields: dict[str, Any]) -> list[Grid]:
        return [self._grid((image.height, image.width)) for image in images]

    def num_rows(self, grid: Grid) -> int:
        tiles = grid[0] * grid[1]
        return tiles if tiles == 1 else tiles + 1

    def picture(self, pixel_values: Tensor, grid: Grid) -> Tensor:
        (rows, columns), (height, width) = grid, self._tile()
        tiles = pixel_values[: rows * columns].view(rows, columns, 3, height, width)
        return self.denormalise(tiles.permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width))

    def pixel_values(self, picture: Tensor) -> Tensor:
        height, width = self._tile()
        rows, columns = picture.size(1) // height, picture.size(2) // width
        split = self.normalise(picture).view(3, rows, height, columns, width)
        tiles = split.permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, height, width)
        if len(tiles) == 1:
            return tiles
        thumbnail = torch.nn.functional.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)
        return torch.cat([tiles, self.normalise(thumbnail)])

    def process(self, images: list[Image.Image]) -> list[ImageFields]:
        fields = self.image_processor(images=images, crop_to_patches=True, return_tensors="pt")
        counts = torch.as_tensor(fields["num_patches"]).tolist()
        return [{"pixel_values": part} for part in fields["pixel_values"].split(counts)]

    def _tile(self) -> tuple[int, int]:
        return self.image_processor.size["height"], self.image_processor.size["width"]

    def _grid(self, size: tuple[int, int]) -> Grid:
        processor = self.image_processor
        columns, rows = get_optimal_tiled_canvas(size, self._tile(), processor.min_patches, processor.max_patches)
        return rows, columns


LAYOUTS: dict[str, type[PixelLayout]] = {
    "qwen2_vl": QwenLayout,
    "qwen2_5_vl": QwenLayout,
    "qwen3_vl": QwenLayout,
    "internvl": InternVLLayout,
    "glm4v": QwenLayout,
}


def get_layout(model_type: str, processor: Any) -> PixelLayout:
    """The pixel layout of a `config.model_type` with this processor.

    Raises:
        ValueError: for a model type that is not in `LAYOUTS`.
    """
    if model_type not in LAYOUTS:
        raise ValueError(f"Images of model type {model_type!r} cannot be changed; supported are {', '.join(LAYOUTS)}.")
    return LAYOUTS[model_type](processor.image_processor)


@dataclass(frozen=True)
class Row:
    """One prompt of a batch, with what the processor made of its images."""

    prompt_ids: list[int]
    images: list[Image.Image]
    """[] for a row of text."""
    grids: list[Grid]
    """Of each image."""
    fields: dict[str, Any]
    """The processor's tensors; those of `IMAGE_FIELDS` as lists with one tensor per image."""


def split_rows(
    prompt_ids: list[list[int]], images: list[list[Image.Image]] | None, fields: dict[str, Any], layout: PixelLayout
) -> list[Row]:
    """A processed batch, row by row.

    Args:
        prompt_ids: token ids of each row.
        images: the images of each row, [] for a row of text; None if no row has any.
        fields: what the processor made of the batch, without the token ids.
        layout: the family's.

    Raises:
        ValueError: for pixels that do not add up, or an entry of `fields` that does not have one value per row.
    """
    row_images = [[] for _ in prompt_ids] if images is None else images
    flat = [image for some in row_images for image in some]
    grids = layout.grids(flat, fields) if flat else []
    rows = [Row(ids, list(some), [], {}) for ids, some in zip(prompt_ids, row_images, strict=True)]
    owners = [row for row in rows for _ in row.images]
    for row, grid in zip(owners, grids, strict=True):
        row.grids.append(grid)
    if flat:
        sizes = {"pixel_values": [layout.num_rows(grid) for grid in grids], "image_grid_thw": [1] * len(flat)}
        for name in fields.keys() & sizes:
            values = torch.stack(fields[name]) if isinstance(fields[name], list) else fields[name]
            if len(values) != sum(sizes[name]):
                raise ValueError(
                    f"{len(flat)} images should take {sum(sizes[name])} rows of {name}, got {len(values)}."
                )
            for row, part in zip(owners, values.split(sizes[name]), strict=True):
                row.fields.setdefault(name, []).append(part)
    for name in fields.keys() - set(IMAGE_FIELDS):
        if len(fields[name]) != len(rows):
            raise ValueError(f"The processor's {name} has {len(fields[name])} entries for {len(rows)} prompts.")
        for row, value in zip(rows, fields[name], strict=True):
            row.fields[name] = value
    return rows


def join_rows(rows: list[Row]) -> dict[str, Any]:
    """The `fields` of a batch of rows, the inverse of `split_rows`."""
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.fields):
        if name in IMAGE_FIELDS:
            fields[name] = torch.cat([part for row in rows for part in row.fields.get(name, [])])
        else:
            values = [row.fields[name] for row in rows]
            fields[name] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return fields


def row_pictures(row: Row, layout: PixelLayout) -> list[Tensor]:
    """The picture of each image of a row."""
    parts = zip(row.fields.get("pixel_values", []), row.grids, strict=True)
    return [layout.picture(values, grid) for values, grid in parts]


def replace_pictures(rows: list[Row], pictures: list[list[Tensor]], layout: PixelLayout) -> list[Row]:
    """The rows with other images, which the processor makes into tensors of the same shapes.

    Args:
        rows: rows of `split_rows`.
        pictures: for each row, a picture of the size of `PixelLayout.picture` per image; rounded to grey levels.
        layout: the family's.

    Raises:
        ValueError: if the processor resizes such a picture again.
    """
    images = [[to_image(picture) for picture in some] for some in pictures]
    flat = [image for some in images for image in some]
    processed = iter(layout.process(flat) if flat else [])
    replaced = []
    for row, some in zip(rows, images, strict=True):
        parts = [next(processed) for _ in some]
        fields = dict(row.fields)
        for name in parts[0] if parts else ():
            fields[name] = [part[name] for part in parts]
        for old, new, image in zip(row.fields.get("pixel_values", []), fields.get("pixel_values", []), some):
            if old.shape != new.shape:
                raise ValueError(
                    f"The processor made an image into a picture of {image.width} x {image.height} pixels, and that "
                    "one into another size; widen its limits on the image size."
                )
        replaced.append(Row(row.prompt_ids, some, row.grids, fields))
    return replaced


def to_image(picture: Tensor) -> Image.Image:
    """The 8-bit image nearest to a (3, height, width) picture in [0, 1]."""
    levels = (picture.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))


def amplified_difference(changed: Tensor, clean: Tensor) -> Tensor:
    """changed - clean as a picture: mid-grey where they agree, black or white at the largest difference."""
    difference = changed - clean
    return 0.5 + 0.5 * difference / difference.abs().max().clamp(min=1e-8)


def save_comparison(folder: Path, stem: str, clean: Tensor, changed: Tensor) -> None:
    """Write `<stem>-clean.png`, `<stem>-adversarial.png` and `<stem>-difference.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    clean, changed = clean.detach().cpu(), changed.detach().cpu()
    pictures = {"clean": clean, "adversarial": changed, "difference": amplified_difference(changed, clean)}
    for name, picture in pictures.items():
        to_image(picture).save(folder / f"{stem}-{name}.png")
