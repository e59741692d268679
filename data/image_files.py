"""Image files: the size as shown and whether the file is whole, from its header and end alone; and the picture."""

import os
from io import BytesIO
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps

from vlm_entropy.rewards.geometry import Size

MAX_ASPECT_RATIO = 200  # Qwen's image processor refuses images beyond it
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
_JPEG_END = b"\xff\xd9"
_PNG_SIGNATURE_BYTES = 8
_PNG_METADATA = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}


def jpeg_is_whole(file: BinaryIO) -> bool:
    """Whether a JPEG file ends in its end marker, FFD9, which no picture data contains."""
    file.seek(-len(_JPEG_END), os.SEEK_END)
    return file.read() == _JPEG_END


def png_is_whole(file: BinaryIO) -> bool:
    """Whether the chunks of a PNG file lead to IEND, without text or EXIF after the picture data has begun.

    Such a late chunk may turn the image, and Pillow knows it only after decoding.
    """
    file.seek(_PNG_SIGNATURE_BYTES)
    kind = b""
    seen_picture = False
    while len(header := file.read(8)) == 8:
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if kind == b"IEND":
            return seen_picture
        seen_picture |= kind == b"IDAT"
        if seen_picture and kind in _PNG_METADATA:
            return False
        file.seek(length + 4, os.SEEK_CUR)  # the picture data and its checksum
    return False


_END_CHECKS = {"JPEG": jpeg_is_whole, "PNG": png_is_whole}


def is_whole(path: str, image_format: str | None) -> bool:
    """Whether the end of a file shows that nothing was cut off; False where only decoding can tell."""
    check = _END_CHECKS.get(image_format or "")
    if check is None:
        return False
    with open(path, "rb") as file:
        return check(file)


def _upright_size(path: str, *, decode: bool) -> Size:
    with Image.open(path) as image:
        width, height = image.size
        if decode or not is_whole(path, image.format):
            image.draft("RGB", (1, 1))  # a JPEG decodes at an eighth of its size, and still to its last byte
            image.load()
        # PngImageFile.getexif would decode to look for late EXIF; png_is_whole has ruled it out
        exif = Image.Image.getexif(image)
    return (height, width) if exif.get(ExifTags.Base.Orientation) in _SIDEWAYS else (width, height)


def image_size(path: str, *, decode: bool = False) -> Size | str:
    """Return the upright (width, height) of an image in pixels, or the reason why it cannot be used.

    Args:
        path: of the file.
        decode: decode the whole image. Otherwise a JPEG or PNG file with a proper end is not decoded: one that was
            cut off is found, damage in its middle is not.
    """
    try:
        width, height = _upright_size(path, decode=decode)
    except FileNotFoundError:
        return f"the image {path!r} does not exist."
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"the image {path!r} cannot be read: {error}."
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return f"the image {path!r} is {width}x{height}; a side may be at most {MAX_ASPECT_RATIO} times the other."
    return width, height


def open_image(source: str | bytes, *, upright: bool) -> Image.Image:
    """The decoded picture as RGB.

    Args:
        source: path of a file, or an encoded image.
        upright: turn it as its EXIF orientation says, which is what the trainers see; False keeps the stored raster,
            which the boxes of published data sets belong to.

    Raises:
        ValueError: for a file that is missing or cannot be decoded.
    """
    name = "the embedded image" if isinstance(source, bytes) else f"the image {source!r}"
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read: {error}.") from error
