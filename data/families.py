"""Model families: the space their boxes are in, the image they see, and the tokens an image costs them.

A family is known by `config.model_type`, never by the name of a path.
"""

import math
from dataclasses import dataclass
from typing import Any

import vlm_entropy.rewards.geometry as geometry
from vlm_entropy.rewards.geometry import Box, Size


@dataclass(frozen=True)
class Family:
    """What differs between model families in grounding; the subclasses know the image processors."""

    model_type: str
    """`config.model_type` of transformers."""
    space: str
    """Coordinate space of the boxes it answers with, one of `rewards.geometry.SPACES`."""
    answer: str
    """The form of its box answers, in words."""
    vision_module: str
    """Part of a parameter's name that says it belongs to the vision tower."""
    image_frame_tokens: int = 0
    """Tokens per image that the processor adds around the image tokens, and that its chat template does not hold."""

    def to_original(self, box: Box, *, image_size: Size | None, input_size: Size | None = None) -> Box:
        """Convert a box of this family to pixels of the original image; see `rewards.geometry.to_original`."""
        return geometry.to_original(box, self.space, image_size=image_size, input_size=input_size)

    def from_original(self, box: Box, *, image_size: Size | None, input_size: Size | None = None) -> Box:
        """Convert a box in pixels of the original image to this family's space; the inverse of `to_original`."""
        return geometry.from_original(box, self.space, image_size=image_size, input_size=input_size)

    def input_size(self, image_size: Size, image_processor: Any) -> Size:
        """Return the (width, height) in pixels that boxes in space `absolute_resized` are measured against."""
        raise NotImplementedError

    def image_tokens(self, image_size: Size, processor: Any) -> int:
        """Return how many image tokens an image of (width, height) pixels puts into the prompt."""
        raise NotImplementedError


@dataclass(frozen=True)
class QwenFamily(Family):
    """Qwen-VL: one resized image of whole merge cells, side = patch_size · merge_size, one token each."""

    def input_size(self, image_size: Size, image_processor: Any) -> Size:
        """Return the (width, height) after the processor's resize, sides multiples of patch_size · merge_size.

        By qwen_vl_utils' `smart_resize`, which differs from the processor of transformers at two edges, both taken
        from the latter here: a side may not be floored to 0, and a side that rounds to 0 cells makes the area 0, so
        that the image is rescaled to the minimum area however large it is.
        """
        import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before qwen_vl_utils)
        from qwen_vl_utils.vision_process import smart_resize

        width, height = image_size
        cell = image_processor.patch_size * image_processor.merge_size
        low, high = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
        new_height, new_width = smart_resize(height, width, factor=cell, min_pixels=low, max_pixels=high)
        if round(min(image_size) / cell) == 0:
            scale = math.sqrt(low / (width * height))
            new_height, new_width = (math.ceil(side * scale / cell) * cell for side in (height, width))
        return max(cell, new_width), max(cell, new_height)

    def image_tokens(self, image_size: Size, processor: Any) -> int:
        """Return the number of merge cells of the resized image."""
        cell = processor.image_processor.patch_size * processor.image_processor.merge_size
        width, height = self.input_size(image_size, processor.image_processor)
        return (width // cell) * (height // cell)


@dataclass(frozen=True)
class GlmFamily(QwenFamily):
    """GLM-4.1V: Qwen-VL's layout of an image with a resize of its own."""

    def input_size(self, image_size: Size, image_processor: Any) -> Size:
        """Return the (width, height) after the resize of transformers, sides multiples of patch_size · merge_size."""
        import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
        from transformers.models.glm4v.image_processing_glm4v import smart_resize

        width, height = image_size
        frames = image_processor.temporal_patch_size
        new_height, new_width = smart_resize(
            frames,
            height,
            width,
            temporal_factor=frames,
            factor=image_processor.patch_size * image_processor.merge_size,
            min_pixels=image_processor.size["shortest_edge"],
            max_pixels=image_processor.size["longest_edge"],
        )
        return new_width, new_height


@dataclass(frozen=True)
class InternVLFamily(Family):
    """InternVL: a grid of square tiles, plus a thumbnail of the whole if there is more than one."""

    def input_size(self, image_size: Size, image_processor: Any) -> Size:
        """Return the image size itself: boxes are relative, and no single resized image exists."""
        return image_size

    def image_tokens(self, image_size: Size, processor: Any) -> int:
        """Return tiles (the thumbnail included) · tokens per tile."""
        width, height = image_size
        # The processor asks for tiles in every call, whatever its image processor's own `crop_to_patches` says.
        tiles = processor.image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        return tiles * processor.image_seq_length


_BOX = "[x1, y1, x2, y2] in "
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        QwenFamily("qwen2_vl", "relative_1000", _BOX + "thousandths of the width and height", "visual."),
        QwenFamily("qwen2_5_vl", "absolute_resized", _BOX + "pixels of the resized image", "visual."),
        QwenFamily("qwen3_vl", "relative_1000", _BOX + "thousandths of the width and height", "visual."),
        InternVLFamily("internvl", "relative_1000", _BOX + "thousandths of the width and height", "vision_tower.", 2),
        GlmFamily("glm4v", "relative_1000", _BOX + "thousandths of the width and height", "visual."),
    )
}


def get_family(model_type: str) -> Family:
    """Return the family of a `config.model_type`.

    Raises:
        ValueError: for one that is not in `FAMILIES`.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"Unknown model type {model_type!r}; supported are {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def _counted_frames(image_processor: Any) -> int:
    """How often limits on the size of an image count a pixel: GLM's do so in every frame of a temporal patch."""
    return image_processor.temporal_patch_size if type(image_processor).__name__.startswith("Glm4v") else 1


def pixel_limits(image_processor: Any) -> tuple[int, int] | None:
    """The smallest and largest area, in pixels, that an image is resized to; None for a processor that cuts tiles."""
    size, frames = image_processor.size, _counted_frames(image_processor)
    return (size["shortest_edge"] // frames, size["longest_edge"] // frames) if "shortest_edge" in size else None


def set_pixel_limits(processor: Any, *, min_pixels: int | None = None, max_pixels: int | None = None) -> None:
    """Set the area, in pixels, that a Qwen or GLM processor resizes images to; saved with the processor.

    Args:
        processor: processor of a Qwen or GLM family, changed in place.
        min_pixels: smaller images are enlarged to it; None keeps the present value.
        max_pixels: larger images are shrunk to it, so larger = more image tokens; None keeps the present value.

    Raises:
        ValueError: for a processor without such limits (InternVL), or unless 0 < min_pixels <= max_pixels.
    """
    image_processor = processor.image_processor
    limits = pixel_limits(image_processor)
    if limits is None:
        raise ValueError(
            f"{type(image_processor).__name__} has no limits in pixels (it cuts tiles); use set_max_tiles."
        )
    low, high = (old if new is None else new for old, new in zip(limits, (min_pixels, max_pixels), strict=True))
    if not 0 < low <= high:
        raise ValueError(f"0 < min_pixels <= max_pixels is needed, got min_pixels={low} and max_pixels={high}.")
    frames = _counted_frames(image_processor)
    image_processor.size = {"shortest_edge": low * frames, "longest_edge": high * frames}


def set_max_tiles(processor: Any, max_tiles: int) -> None:
    """Set the largest number of tiles an InternVL processor cuts an image into; saved with the processor.

    Args:
        processor: processor of the InternVL family, changed in place.
        max_tiles: tiles without the thumbnail, at least 1; larger = finer view and more image tokens.

    Raises:
        ValueError: for a processor without tiles (Qwen, GLM), or a limit under its smallest number of tiles.
    """
    image_processor = processor.image_processor
    if "max_patches" not in image_processor.to_dict():
        raise ValueError(f"{type(image_processor).__name__} cuts no tiles; use set_pixel_limits.")
    if max_tiles < max(1, image_processor.min_patches):
        raise ValueError(f"At least {max(1, image_processor.min_patches)} tiles are needed, got {max_tiles}.")
    image_processor.max_patches = max_tiles


def vision_token_ids(config: Any) -> set[int]:
    """Ids of the tokens that stand for an image or video in a prompt and mean nothing in a completion."""
    edges = [f"{medium}_{edge}_token_id" for medium in ("vision", "image", "video") for edge in ("start", "end")]
    names = ("image_token_id", "video_token_id", *edges)
    return {getattr(config, name) for name in names if getattr(config, name, None) is not None}
