"""What is known of a checkpoint without its weights: its configuration, its processor, and the images it may see."""

from typing import Any

from .families import get_family, set_max_tiles, set_pixel_limits


def load_description(name: str, *, flag: str, revision: str | None = None) -> tuple[Any, Any]:
    """Configuration and processor of a checkpoint, without its weights.

    Args:
        name: folder, or name on the hub.
        flag: that named it, for the error.
        revision: on the hub.

    Raises:
        ValueError: for a folder that holds no model of a family we know.
    """
    import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
    from transformers import AutoConfig, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        get_family(config.model_type)
        processor = AutoProcessor.from_pretrained(name, revision=revision, padding_side="left", truncation_side="left")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{flag} {name!r} is no vision-language model to train: {reason}") from None
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
