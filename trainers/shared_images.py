"""Image processing that takes each different image of a batch once."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import make_flat_list_of_images


class OncePerImage:
    """An image processor that processes equal images of a call once and repeats the result.

    Anything but calling it, and every call whose result it could not take apart by image, goes to the processor.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        flat: Any = make_flat_list_of_images(images)
        numbers, different = same_images(flat)
        if len(different) == len(flat):
            return self.processor(images, **kwargs)
        once = self.processor(different, **kwargs)
        entries = {name: by_image(once, name, len(different)) for name in once}
        if not all(entries.values()):
            return self.processor(images, **kwargs)
        for name, parts in entries.items():
            repeated = [parts[number] for number in numbers]
            once[name] = torch.cat(repeated) if isinstance(once[name], Tensor) else list(chain(*repeated))
        return once


def same_images(images: list[Any]) -> tuple[list[int], list[Any]]:
    """The number of each image in the list of different ones, and that list."""
    different: dict[Any, int] = {}
    numbers: list[int] = []
    kept: list[Any] = []
    for image in images:
        # The bytes of an image with a palette are numbers of its colours.
        is_plain = isinstance(image, Image.Image) and image.mode not in ("P", "PA")
        key = (image.mode, image.size, image.tobytes()) if is_plain else id(image)
        if key not in different:
            different[key] = len(kept)
            kept.append(image)
        numbers.append(different[key])
    return numbers, kept


def by_image(fields: Any, name: str, count: int) -> list:
    """The part of an entry that belongs to each image, or [] where nothing says so."""
    values = fields[name]
    if not isinstance(values, (Tensor, list)):
        return []
    if name == "pixel_values" and "image_grid_thw" in fields:
        sizes = torch.as_tensor(fields["image_grid_thw"]).prod(dim=-1).tolist()
    elif name == "pixel_values" and "num_patches" in fields:
        sizes = torch.as_tensor(fields["num_patches"]).tolist()
    else:
        sizes = [1] * count
    if len(values) != sum(sizes):
        return []
    ends = list(accumulate(sizes))
    return [values[end - size : end] for end, size in zip(ends, sizes)]


@contextmanager
def processing_images_once(processor: Any) -> Iterator[None]:
    """Within it, the processor of a vision-language model runs its image processor `OncePerImage`."""
    inner = getattr(processor, "image_processor", None)
    if inner is None:
        yield
        return
    processor.image_processor = OncePerImage(inner)
    try:
        yield
    finally:
        processor.image_processor = inner
