"""Camera images: from the bytes of a file to what a vision tower takes, and back to bytes.

What a client sends is not to be trusted: the size is read from the header, and checked, before a pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from reprlib import repr as shown
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

ImageFormat: TypeAlias = Literal["png", "jpeg"]
FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg")
MAX_PIXELS = 1 << 22
"""2048 × 2048: several times what cameras of robots give, and 12 MiB when decoded."""

Rgb = npt.NDArray[np.uint8]

DAMAGED = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are not what they should be."""


class ImageError(ValueError):
    """Bytes that are not an image that can be used; says why."""


def decode_image(data: bytes, image_format: str, max_pixels: int = MAX_PIXELS) -> Rgb:
    """The image, uint8 (height, width, 3), as it is stored: no EXIF orientation is applied.

    Transparency is dropped; of several frames the first is taken, of 16 bits the upper 8.

    Raises:
        ImageError: the format is neither "png" nor "jpeg", the bytes are no such file, are cut off, or hold more
            pixels than `max_pixels`.
    """
    if image_format not in FORMATS:
        raise ImageError(f"has the format {shown(image_format)}; it can be {' or '.join(FORMATS)}")
    try:
        with Image.open(BytesIO(data), formats=[image_format]) as image:
            width, height = image.size
            if width * height <= max_pixels:
                return _rgb(image)
    except DAMAGED as error:
        raise ImageError(f"is no {image_format}: {_reason(error)}") from None
    raise ImageError(f"has {width} × {height} pixels; at most {max_pixels} are decoded")


def _rgb(image: Image.Image) -> Rgb:
    if image.mode.startswith("I"):  # gray of 16 bits, of which Pillow would cut off all that is above 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _reason(error: Exception) -> str:
    # Pillow quotes the address of the buffer in memory, which says nothing
    return "its header is not one" if isinstance(error, UnidentifiedImageError) else str(error)


def resize_with_pad(image: Rgb, size: int) -> Rgb:
    """The image (height, width, 3) as (size, size, 3): its proportions kept, black around it."""
    height, width = image.shape[:2]
    ratio = max(width / size, height / size)
    inner = max(1, int(width / ratio)), max(1, int(height / ratio))
    if (width, height) == (size, size):
        return image
    resized = np.asarray(Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR))
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    padded = np.zeros((size, size, 3), np.uint8)
    padded[top : top + inner[1], left : left + inner[0]] = resized
    return padded


def pixel_values(image: Rgb, size: int) -> npt.NDArray[np.float32]:
    """What the vision tower takes of an image (height, width, 3): float32 (3, size, size) from −1 to 1."""
    resized = resize_with_pad(image, size).astype(np.float32)
    return np.ascontiguousarray((resized / np.float32(255) * 2 - 1).transpose(2, 0, 1))


def encode_image(image: Rgb, image_format: ImageFormat = "png") -> bytes:
    """The bytes of a file of this image, uint8 (height, width, 3).

    Raises:
        ValueError: it is none.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 (height, width, 3), is {image.dtype} {image.shape}")
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, image_format)
    return buffer.getvalue()
