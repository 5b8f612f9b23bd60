"""Safetensors files without torch: headers that are checked, tensors that are read and written one at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mint.errors import BadRequestError

Array: TypeAlias = npt.NDArray[Any]

MAX_HEADER_BYTES = 32 << 20
LENGTH_BYTES = 8
FLOATS = ("F32", "F16", "BF16")
STORED: dict[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
"""numpy's types for those of a file; it has none for bfloat16."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its type by the format's name, its shape, and at which byte it begins."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class TensorFile:
    """A file of tensors that somebody has sent.

    Raises:
        BadRequestError: it is none; the message says what it is called.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.tensors = _read_header(path)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadRequestError(f"is no safetensors file: {error}", field=path.name) from None

    def read(self, name: str) -> Array:
        """A tensor; float types as float32, in which all of their numbers are themselves.

        Raises:
            BadRequestError: a number of it is not finite.
        """
        stored = self.tensors[name]
        raw = np.memmap(self._path, STORED[stored.dtype], "r", stored.start, stored.shape)
        if stored.dtype == "I64":
            return raw
        floats = (raw.astype("<u4") << 16).view("<f4") if stored.dtype == "BF16" else raw.astype("<f4", copy=False)
        # one of the two is not finite where any number is
        if not np.isfinite([floats.min(), floats.max()]).all():
            raise BadRequestError(f"{name} has a number that is not finite", field=self._path.name)
        return floats


def _read_header(path: Path) -> dict[str, Stored]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length} bytes; {MAX_HEADER_BYTES} is the most")
        with safe_open(path, framework="numpy"):  # sees that the tensors lie one after another and fill the file
            header = json.loads(file.read(length), object_pairs_hook=_object)
    base = LENGTH_BYTES + length
    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]), base + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterable[Array]) -> None:
    """Write float32 tensors of these names and shapes, which come one at a time, and flush the file to the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for tensor in _checked(shapes, tensors):
            file.write(np.ascontiguousarray(tensor, "<f4").data)
        file.flush()
        os.fsync(file.fileno())


def _checked(shapes: dict[str, tuple[int, ...]], tensors: Iterable[Array]) -> Iterator[Array]:
    for shape, tensor in zip(shapes.values(), tensors, strict=True):
        assert tensor.shape == shape
        yield tensor
