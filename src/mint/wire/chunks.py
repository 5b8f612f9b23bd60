"""What a ModelInput is made of: text and images, from protobuf and from JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mint.errors import BadRequestError
from mint.wire import messages_pb2 as pb
from mint.wire.documents import list_at, object_at
from mint.wire.tensors import numbers

Tokens: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ImageChunk:
    """The bytes of a file in `format`; `expected_tokens` is how many tokens the client takes it for, if it says so."""

    data: bytes
    format: str
    expected_tokens: int | None


Chunk: TypeAlias = Tokens | ImageChunk


@dataclass(frozen=True)
class ModelInput:
    """The chunks of an input, text as int32 (n,) with n ≥ 1; `where` is the field it came in."""

    chunks: tuple[Chunk, ...]
    where: str

    @property
    def num_tokens(self) -> int:
        """As the client counts them; an image of which it does not say counts none."""
        return sum(
            (chunk.expected_tokens or 0) if isinstance(chunk, ImageChunk) else len(chunk) for chunk in self.chunks
        )

    @property
    def has_images(self) -> bool:
        """Whether it is more than text."""
        return any(isinstance(chunk, ImageChunk) for chunk in self.chunks)

    def text(self) -> Tokens:
        """The tokens of all chunks, int32 (N,).

        Raises:
            BadRequestError: one is an image.
        """
        for place, chunk in enumerate(self.chunks):
            if isinstance(chunk, ImageChunk):
                raise BadRequestError("is image; this model takes text only", field=f"{self.where}.chunks[{place}]")
        return joined([chunk for chunk in self.chunks if not isinstance(chunk, ImageChunk)])


def joined(pieces: Sequence[Tokens]) -> Tokens:
    """Int32 (N,) of any number of them."""
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32)


def input_from_protobuf(chunks: Sequence[pb.Chunk], where: str) -> ModelInput:
    """Read the chunks of a datum.

    Raises:
        BadRequestError: naming the one that is damaged, or of a kind that is not served.
    """
    return ModelInput(
        tuple(_chunk_from_protobuf(chunk, f"{where}.chunks[{place}]") for place, chunk in enumerate(chunks)), where
    )


def _chunk_from_protobuf(chunk: pb.Chunk, where: str) -> Chunk:
    kind = chunk.WhichOneof("chunk")
    if kind == "image":
        image = chunk.image
        if image.HasField("override_dimensions"):
            raise BadRequestError(
                "is not served; send the image in the size that it is to have", field=f"{where}.override_dimensions"
            )
        expected = image.expected_tokens if image.HasField("expected_tokens") else None
        return ImageChunk(image.data, image.format, expected)
    if kind != "encoded_text":
        raise _not_served(kind or "empty", where)
    data = chunk.encoded_text.tokens
    if not data or len(data) % 4:
        raise BadRequestError(f"has {len(data)} bytes; it needs tokens of 4 bytes, at least one", field=where)
    return np.frombuffer(data, "<i4")


def input_from_json(value: object, where: str) -> ModelInput:
    """Read the SDK's ModelInput; see `input_from_protobuf`."""
    chunks = list_at(object_at(value, where).get("chunks"), f"{where}.chunks")
    return ModelInput(
        tuple(
            chunk_from_json(object_at(chunk, path), path)
            for place, chunk in enumerate(chunks)
            for path in [f"{where}.chunks[{place}]"]
        ),
        where,
    )


def chunk_from_json(chunk: dict[str, Any], where: str) -> Chunk:
    """Read one; see `input_from_protobuf`. Older SDKs leave `type` out."""
    kind, tokens = chunk.get("type"), chunk.get("tokens")
    if kind == "image" or (kind is None and "data" in chunk):
        return _image_from_json(chunk, where)
    if kind not in {None, "encoded_text"} or not isinstance(tokens, list):
        raise _not_served(str(kind or sorted(chunk)), where)
    array = numbers(tokens, np.dtype(np.int64), where)
    if array.ndim != 1 or not len(array) or array.min() < -(1 << 31) or array.max() >= 1 << 31:
        raise BadRequestError("must have tokens, at least one, each a 32-bit number", field=where)
    return array.astype(np.int32)


def _image_from_json(chunk: dict[str, Any], where: str) -> ImageChunk:
    data, expected = chunk.get("data"), chunk.get("expected_tokens")
    if not isinstance(data, str):
        raise BadRequestError("must be text in base64", field=f"{where}.data")
    if not isinstance(expected, int | None) or isinstance(expected, bool):
        raise BadRequestError("must be a whole number", field=f"{where}.expected_tokens")
    try:
        return ImageChunk(base64.b64decode(data, validate=True), str(chunk.get("format")), expected)
    except (binascii.Error, ValueError):
        raise BadRequestError("is no base64", field=f"{where}.data") from None


def _not_served(kind: str, where: str) -> BadRequestError:
    return BadRequestError(f"is {kind[:64]}; served are encoded_text and image", field=where)
