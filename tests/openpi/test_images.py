"""Camera images, those that are none included."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mint.openpi.images import MAX_PIXELS, ImageError, decode_image, encode_image, pixel_values, resize_with_pad

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_claiming(width: int, height: int, content: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def file_of(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def test_a_png_comes_back_in_every_bit_and_a_jpeg_nearly() -> None:
    np.testing.assert_array_equal(decode_image(encode_image(PICTURE), "png"), PICTURE)
    smooth = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (32, 32, 3))
    jpeg = encode_image(np.ascontiguousarray(smooth), "jpeg")
    assert np.abs(decode_image(jpeg, "jpeg").astype(int) - smooth).max() < 12


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_all_kinds_of_pixels_become_rgb(mode: str) -> None:
    decoded = decode_image(file_of(Image.fromarray(PICTURE).convert(mode), "png"), "png")
    assert decoded.shape == (6, 9, 3)
    assert decoded.dtype == np.uint8


def test_of_sixteen_bits_the_upper_eight_are_taken() -> None:
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    decoded = decode_image(file_of(Image.fromarray(deep), "png"), "png")
    assert decoded.tolist() == [[[0] * 3, [0] * 3, [1] * 3, [255] * 3]]


def test_an_image_is_taken_as_it_is_stored() -> None:
    """No orientation is applied, and of several frames the first is taken."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    frames[0].save(buffer, "png", save_all=True, append_images=frames[1:], exif=exif)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "png"), PICTURE)


@pytest.mark.parametrize(
    ("data", "image_format", "said"),
    [
        (b"", "png", "is no png"),
        (b"hello", "jpeg", "is no jpeg"),
        (encode_image(PICTURE), "jpeg", "is no jpeg"),
        (encode_image(PICTURE, "jpeg"), "png", "is no png"),
        (encode_image(PICTURE)[:-30], "png", "is no png"),
        (encode_image(PICTURE, "jpeg")[:-40], "jpeg", "is no jpeg"),
        (encode_image(PICTURE), "gif", "has the format 'gif'; it can be png or jpeg"),
        (file_of(Image.fromarray(PICTURE), "bmp"), "png", "is no png"),
        (png_claiming(0, 0), "png", "is no png"),
    ],
)
def test_what_is_no_such_image_is_refused(data: bytes, image_format: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        decode_image(data, image_format)


def test_a_refusal_is_short() -> None:
    with pytest.raises(ImageError) as refusal:
        decode_image(b"", "g" * 10**6)
    assert len(str(refusal.value)) < 100


def test_a_bomb_is_refused_by_its_header() -> None:
    """40 kB that would be 37 MB of pixels, and a header that claims more than there is memory."""
    rows = zlib.compress(bytes((1 + 3 * 3500) * 3500))
    tracemalloc.start()
    for bomb in (png_claiming(3500, 3500, rows), png_claiming(1 << 30, 1 << 30, rows)):
        with pytest.raises(ImageError):
            decode_image(bomb, "png")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(ImageError, match=f"has 3500 × 3500 pixels; at most {MAX_PIXELS} are decoded"):
        decode_image(png_claiming(3500, 3500, rows), "png")


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["png", "jpeg"]))
def test_no_damage_raises_anything_else(place: int, value: int, image_format: str) -> None:
    data = bytearray(encode_image(PICTURE, image_format))  # type: ignore[arg-type]
    data[place % len(data)] = value
    with suppress(ImageError):
        decode_image(bytes(data), image_format)


def test_proportions_are_kept_and_the_rest_is_black() -> None:
    white = np.full((10, 40, 3), 255, np.uint8)
    padded = resize_with_pad(white, 20)
    assert padded.shape == (20, 20, 3)
    assert padded[7:12].min() == 255
    assert not padded[:7].any()
    assert not padded[12:].any()
    assert resize_with_pad(np.zeros((1, 4000, 3), np.uint8), 8).shape == (8, 8, 3)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40))
def test_any_image_fits_any_size(height: int, width: int, size: int) -> None:
    pixels = pixel_values(np.full((height, width, 3), 255, np.uint8), size)
    assert pixels.shape == (3, size, size)
    assert pixels.max() == 1


def test_pixels_run_from_minus_one_to_one() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 1, 2] = 255
    pixels = pixel_values(image, 4)
    assert pixels.dtype == np.float32
    assert pixels[2, 0, 1] == 1
    assert np.delete(pixels.ravel(), 2 * 16 + 1).tolist() == [-1.0] * 47


def test_what_is_no_image_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="image must be uint8"):
        encode_image(np.zeros((3, 3), np.uint8))
