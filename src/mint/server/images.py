"""Images of requests: checked and decoded here, so that what reaches a worker is pixels of the size that it takes.

A client's file is not to be trusted: its header is read, and its size checked, before anything of it is decoded.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mint.engine.core import Image, Int32Array, ModelInfo, PlacedImage, VisionInfo
from mint.errors import BadRequestError
from mint.openpi.images import ImageError, decode_image, resize_with_pad
from mint.wire.chunks import ImageChunk, ModelInput, joined

MAX_IMAGE_BYTES = 8 << 20
MAX_REQUEST_PIXELS = 1 << 30
"""Decoded for one request: some seconds of one core."""

MAX_SCANS = 64
"""Of a JPEG, each of which goes through all of its pixels; cameras write one, and progressive files some ten."""

SCAN_MARKER = b"\xff\xda"


class ImageReader:
    """The images of one request, each decoded once however often it comes."""

    def __init__(self, vision: VisionInfo) -> None:
        self._vision = vision
        self._known: dict[tuple[str, bytes], Image] = {}
        self._pixels = 0

    def read(self, chunk: ImageChunk, where: str) -> Image:
        """The image as the model takes it.

        Raises:
            BadRequestError: it cannot be decoded, is too large, or is not as many tokens as the client expects.
        """
        tokens = self._vision.tokens_per_image
        if chunk.expected_tokens not in {None, tokens}:
            raise BadRequestError(
                f"is {chunk.expected_tokens}; this model makes {tokens} tokens of an image",
                field=f"{where}.expected_tokens",
            )
        if len(chunk.data) > MAX_IMAGE_BYTES:
            raise BadRequestError(f"has {len(chunk.data)} bytes; at most {MAX_IMAGE_BYTES} are read", field=where)
        name = chunk.format, hashlib.blake2b(chunk.data, digest_size=16).digest()
        if name not in self._known:
            self._known[name] = self._decode(chunk, where)
        return self._known[name]

    def _decode(self, chunk: ImageChunk, where: str) -> Image:
        if chunk.format == "jpeg" and chunk.data.count(SCAN_MARKER) > MAX_SCANS:
            raise BadRequestError(f"has more than {MAX_SCANS} scans", field=where)
        try:
            decoded = decode_image(chunk.data, chunk.format)
        except ImageError as error:
            raise BadRequestError(str(error), field=where) from None
        self._pixels += decoded.shape[0] * decoded.shape[1]
        if self._pixels > MAX_REQUEST_PIXELS:
            raise BadRequestError(
                f"brings the request to {self._pixels} pixels; at most {MAX_REQUEST_PIXELS} are decoded", field=where
            )
        pixels = resize_with_pad(decoded, self._vision.size)
        return Image(pixels, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())


def place_chunks(
    model_input: ModelInput, model: ModelInfo, reader: ImageReader | None
) -> tuple[Int32Array, tuple[PlacedImage, ...]]:
    """The tokens of an input, int32 (N,), and the images in it, in the places of tokens 0.

    Raises:
        BadRequestError: an image cannot be used.
    """
    if reader is None or model.vision is None:
        return model_input.text(), ()
    pieces: list[Int32Array] = []
    images: list[PlacedImage] = []
    start, size = 0, model.vision.tokens_per_image
    for place, chunk in enumerate(model_input.chunks):
        if isinstance(chunk, ImageChunk):
            image = reader.read(chunk, f"{model_input.where}.chunks[{place}]")
            images.append(PlacedImage(start, size, image))
        pieces.append(np.zeros(size, np.int32) if isinstance(chunk, ImageChunk) else chunk)
        start += len(pieces[-1])
    return joined(pieces), tuple(images)
