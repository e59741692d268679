"""What a vision-language model must not get: empty image tensors, and placeholder tokens in a completion."""

from typing import Any


def without_empty_images(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The inputs of a forward without the empty image tensors of a micro-batch that holds only rows of text."""
    pixels = kwargs.get("pixel_values")
    if pixels is None or pixels.numel() > 0:
        return args, kwargs
    return args, {name: value for name, value in kwargs.items() if name not in ("pixel_values", "image_grid_thw")}


def vision_token_ids(config: Any) -> set[int]:
    """Ids of the tokens that stand for an image or video in a prompt and mean nothing in a completion."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {getattr(config, name) for name in names if getattr(config, name, None) is not None}
