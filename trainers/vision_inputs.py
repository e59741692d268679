"""What a vision-language model must not get: empty image tensors."""

from typing import Any


def without_empty_images(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The inputs of a forward without the empty image tensors of a micro-batch that holds only rows of text."""
    pixels = kwargs.get("pixel_values")
    if pixels is None or pixels.numel() > 0:
        return args, kwargs
    return args, {name: value for name, value in kwargs.items() if name not in ("pixel_values", "image_grid_thw")}
