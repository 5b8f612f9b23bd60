"""Images of requests: checked and decoded here, so that what reaches a worker is pixels of the size that it takes.

A client's file is not to be trusted: its header is read, and its size checked, before anything of it is decoded.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from threading import RLock

import numpy as np

from mint.engine.core import Image, Int32Array, ModelInfo, PlacedImage, VisionInfo
from mint.errors import BadRequestError, RateLimitError
from mint.openpi.images import FORMATS, ImageError, Rgb, decode_image, resize_with_pad
from mint.wire.chunks import ImageChunk, ModelInput, joined

MAX_IMAGE_BYTES = 8 << 20
MAX_REQUEST_PIXELS = 1 << 29
"""Decoded for one request, of images that differ: some seconds of one core."""

MAX_REQUEST_BYTES = 384 << 20
"""What they take once they have the model's size, which for a file of a few bytes is more than its own."""

MAX_HELD_BYTES = 1 << 30
"""The same of all requests of one owner that have no result yet."""

MAX_SCANS = 64
"""Of a JPEG, each of which goes through all of its pixels; cameras write one, and progressive files some ten."""

SCAN_MARKER = b"\xff\xda"


MARKS = (*(image_format.encode() for image_format in FORMATS), b"\\u")
"""A body with an image has one of these: its format, in JSON perhaps escaped."""


def may_have_images(body: bytes) -> bool:
    """Whether something of a body may have to be decoded."""
    return any(mark in body for mark in MARKS)


class PixelMemory:
    """Bytes of images in this process, by owner, from when they are decoded until nothing refers to them."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._lock = RLock()  # the thread that has it may collect garbage

    def hold(self, pixels: Rgb, owner: str) -> None:
        """Count an image until it is gone."""
        self._add(owner, pixels.nbytes)
        weakref.finalize(pixels, self._add, owner, -pixels.nbytes).atexit = False

    def _add(self, owner: str, size: int) -> None:
        with self._lock:
            self._held[owner] += size
            if not self._held[owner]:
                del self._held[owner]

    def check(self, owner: str) -> None:
        """Refuse to decode more while there is much.

        Raises:
            RateLimitError: the owner has as much as is held for one.
        """
        if (held := self._held[owner]) >= MAX_HELD_BYTES:
            raise RateLimitError(
                f"images of {owner}'s operations without a result take {held} bytes; no more are read while these are "
                f"{MAX_HELD_BYTES} or more"
            )


class ImageReader:
    """The images of one request of `owner`, each decoded once however often it comes."""

    def __init__(self, vision: VisionInfo, memory: PixelMemory, owner: str) -> None:
        self._vision = vision
        self._memory = memory
        self._owner = owner
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
            self._check_room(where)
            self._known[name] = self._decode(chunk, where)
        return self._known[name]

    def _check_room(self, where: str) -> None:
        each, number = 3 * self._vision.size**2, len(self._known) + 1
        if each * number > MAX_REQUEST_BYTES:
            raise BadRequestError(
                f"is image {number} that is unlike the others; a request may have {MAX_REQUEST_BYTES // each}",
                field=where,
            )

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
        self._memory.hold(pixels, self._owner)
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
