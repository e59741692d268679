"""What is known of a checkpoint without its weights: its configuration, its processor, and the images it may see."""

import json
from pathlib import Path
from typing import Any

from .families import get_family, pixel_limits, set_max_tiles, set_pixel_limits

IMAGE_LIMITS = ("min_pixels", "max_pixels", "max_anyres_num")
"""Options of commands that `limit_images` takes."""


def adapter_base(name: str) -> str | None:
    """The checkpoint that a folder's PEFT adapter belongs to; None for anything but the folder of an adapter."""
    path = Path(name, "adapter_config.json")
    return str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]) if path.is_file() else None


def load_description(name: str, *, flag: str, revision: str | None = None) -> tuple[Any, Any]:
    """Configuration and processor of a checkpoint, without its weights.

    Those of an adapter are its base's, but for a processor that was saved with it.

    Args:
        name: folder of a checkpoint or of an adapter, or name on the hub.
        flag: that named it, for the error.
        revision: on the hub.

    Raises:
        ValueError: for a folder that holds no model of a family we know.
    """
    import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
    from transformers import AutoConfig, AutoProcessor

    base = adapter_base(name) or name
    processor_name = name if Path(name, "tokenizer_config.json").is_file() else base
    sides = {"padding_side": "left", "truncation_side": "left"}
    try:
        config = AutoConfig.from_pretrained(base, revision=revision)
        get_family(config.model_type)
        processor = AutoProcessor.from_pretrained(processor_name, revision=revision, **sides)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{flag} {name!r} is no vision-language model that can be used: {reason}") from None
    return config, processor


def limit_images(
    processor: Any, *, min_pixels: int | None, max_pixels: int | None, max_anyres_num: int | None
) -> None:
    """Set the limits in pixels or tiles that are given.

    Raises:
        ValueError: for a limit that the processor does not have.
    """
    if min_pixels is not None or max_pixels is not None:
        set_pixel_limits(processor, min_pixels=min_pixels, max_pixels=max_pixels)
    if max_anyres_num is not None:
        set_max_tiles(processor, max_anyres_num)


def image_limits(processor: Any) -> dict[str, int]:
    """The limits in pixels or tiles that are in force, by the names of `limit_images`."""
    limits = pixel_limits(processor.image_processor)
    if limits is None:
        return {"max_anyres_num": processor.image_processor.max_patches}
    return dict(zip(("min_pixels", "max_pixels"), limits, strict=True))
