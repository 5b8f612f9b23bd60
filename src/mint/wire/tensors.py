"""Tensors of the wire ↔ numpy arrays, protobuf and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from mint.errors import BadRequestError
from mint.wire import messages_pb2 as pb

Array: TypeAlias = npt.NDArray[Any]

MAX_ELEMENTS = 1 << 24
"""Of a tensor sent as CSR, whose dense size its bytes do not bound."""

NUMPY_TYPES: dict[pb.DType, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}
MAX_DIMENSIONS, MAX_SIZE = 2, 1 << 40
"""Of a tensor's shape; what a loss takes of that is checked with the loss."""

JSON_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i8"),  # widens, as in protobuf
}


def decode_tensor(message: pb.Tensor, where: str, rows: int) -> Array:
    """A protobuf tensor as float32 or int64; one dimension unless its shape says otherwise.

    A sparse one must have `rows` rows, those of its datum: else a short request could ask for all memory.

    Raises:
        BadRequestError: the bytes are not what dtype and shape say; `where` is the field it names.
    """
    if message.WhichOneof("encoding") == "sparse_csr":
        return _decode_csr(message, where, rows)
    array = _decode_bytes(message.dense, message.dtype, where)
    shape = tuple(message.shape) or (len(array),)
    if len(shape) > MAX_DIMENSIONS:
        raise BadRequestError(f"has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are read", field=where)
    if math.prod(shape) != len(array) or min(shape) < 0 or max(shape) > MAX_SIZE:
        raise BadRequestError(f"has {len(array)} elements, which do not fill its shape {shape}", field=where)
    return _narrow(array.reshape(shape))


def _decode_bytes(data: bytes, dtype: pb.DType, where: str) -> Array:
    if dtype == pb.DTYPE_BFLOAT16:
        # a bfloat16 is the upper half of a float32
        return (_frombuffer(data, np.dtype("<u2"), where).astype(np.uint32) << 16).view(np.float32)
    if dtype not in NUMPY_TYPES:
        raise BadRequestError(f"has dtype {dtype}, which the protocol does not define", field=where)
    return _frombuffer(data, NUMPY_TYPES[dtype], where)


def _frombuffer(data: bytes, dtype: np.dtype[Any], where: str) -> Array:
    if len(data) % dtype.itemsize:
        raise BadRequestError(f"has {len(data)} bytes, not a whole number of {dtype.name}", field=where)
    return np.frombuffer(data, dtype)


def _decode_csr(message: pb.Tensor, where: str, rows: int) -> Array:
    csr = message.sparse_csr
    int64 = NUMPY_TYPES[pb.DTYPE_INT64]
    parts = Csr(
        _narrow(_decode_bytes(csr.values, message.dtype, where)),
        _frombuffer(csr.crow_indices, int64, where),
        _frombuffer(csr.col_indices, int64, where),
    )
    return _dense(parts, tuple(message.shape), rows, where)


class Csr(NamedTuple):
    """Compressed sparse rows: row r lists `values[starts[r]:starts[r + 1]]`, in `columns` alike."""

    values: Array
    starts: Array
    columns: Array

    def fits(self, rows: int, width: int) -> bool:
        """Whether its indices are those of a (rows, width) matrix."""
        values, starts, columns = self
        return bool(
            values.ndim == starts.ndim == columns.ndim == 1
            and len(starts) == rows + 1
            and starts[0] == 0
            and starts[-1] == len(values) == len(columns)
            and (np.diff(starts) >= 0).all()
            and ((columns >= 0) & (columns < width)).all()
        )

    @property
    def rows(self) -> Array:
        """The row of each value."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def _dense(csr: Csr, shape: tuple[int, ...], rows: int, where: str) -> Array:
    """Entries that are not listed are 0."""
    if len(shape) != 2 or shape[0] != rows or shape[1] < 0 or math.prod(shape) > MAX_ELEMENTS:
        raise BadRequestError(
            f"is sparse with shape {shape}; model_input has {rows} tokens, so it must be ({rows}, K) with at most "
            f"{MAX_ELEMENTS} elements",
            field=where,
        )
    if not csr.fits(rows, shape[1]):
        raise BadRequestError("has CSR indices that do not fit its shape and values", field=where)
    dense = np.zeros(shape, csr.values.dtype)
    dense[csr.rows, csr.columns] = csr.values
    return dense


def _narrow(array: Array) -> Array:
    """int32 widens to int64: inside there are two types."""
    return array.astype(np.int64) if array.dtype == np.int32 else array


class JsonTensor(NamedTuple):
    """The SDK's TensorData as JSON: `{data, dtype, shape?, sparse_crow_indices?, sparse_col_indices?}`.

    `content` is the flat data, or, with the shape of the dense matrix that it stands for, CSR.
    """

    content: Array | Csr
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        return (self.content.values if isinstance(self.content, Csr) else self.content).dtype


def read_json_tensor(value: object, where: str) -> JsonTensor:
    """Read TensorData; whether CSR indices fit the shape is not looked at.

    Raises:
        BadRequestError: it is none, or shape and data of a dense one differ.
    """
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise BadRequestError("must be an object with data, dtype and shape", field=where)
    dtype = JSON_TYPES.get(str(value.get("dtype")))
    if dtype is None:
        raise BadRequestError(f"has dtype {value.get('dtype')!r}; known are {', '.join(JSON_TYPES)}", field=where)
    array = numbers(value["data"], dtype, where)
    shape = _shape(value.get("shape"), where) or array.shape
    if value.get("sparse_crow_indices") is not None:
        starts, columns = (
            numbers(value.get(name) or [], np.dtype(np.int64), f"{where}.{name}")
            for name in ("sparse_crow_indices", "sparse_col_indices")
        )
        return JsonTensor(Csr(array, starts, columns), shape)
    if math.prod(shape) != array.size:
        raise BadRequestError(f"has {array.size} elements, which do not fill its shape {shape}", field=where)
    return JsonTensor(array, shape)


def decode_json_tensor(value: object, where: str, rows: int) -> Array:
    """TensorData as an array.

    A sparse one must have `rows` rows, as in `decode_tensor`.

    Raises:
        BadRequestError: it is none, or its parts do not fit each other.
    """
    content, shape = read_json_tensor(value, where)
    return _dense(content, shape, rows, where) if isinstance(content, Csr) else content.reshape(shape)


def _shape(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list | None) or not all(type(size) is int and size >= 0 for size in value or ()):
        raise BadRequestError("must be a list of whole numbers", field=f"{where}.shape")
    if len(value or ()) > MAX_DIMENSIONS or max(value or (), default=0) > MAX_SIZE:
        raise BadRequestError(
            f"must have at most {MAX_DIMENSIONS} sizes, none above {MAX_SIZE}", field=f"{where}.shape"
        )
    return tuple(value or ())


def numbers(values: object, dtype: np.dtype[Any], where: str) -> Array:
    """A JSON list as an array; nothing is rounded, parsed from text or wrapped around, and true is no number.

    Raises:
        BadRequestError: it has something else than such numbers.
    """
    kinds, expected = ("i", "whole numbers") if dtype.kind == "i" else ("iuf", "numbers")
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        array = np.asarray(None)
    if not isinstance(values, list) or (array.size and array.dtype.kind not in kinds) or _has_bool(values):
        raise BadRequestError(f"must have {expected} of {dtype.name} only", field=where)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return array.astype(dtype)


def dense_tensor(array: Array) -> pb.Tensor:
    """A float32, int64 or int32 array, with its shape."""
    dtype = next(number for number, known in NUMPY_TYPES.items() if known == array.dtype)
    return pb.Tensor(dense=np.ascontiguousarray(array).tobytes(), dtype=dtype, shape=array.shape)


def csr_tensor(csr: Csr, shape: tuple[int, int]) -> pb.Tensor:
    """A sparse float32 matrix of that shape."""
    content = pb.SparseCsr(
        values=csr.values.astype("<f4", copy=False).tobytes(),
        crow_indices=csr.starts.astype("<i8", copy=False).tobytes(),
        col_indices=csr.columns.astype("<i8", copy=False).tobytes(),
    )
    return pb.Tensor(sparse_csr=content, dtype=pb.DTYPE_FLOAT32, shape=shape)


def tensor_as_json(message: pb.Tensor) -> dict[str, Any]:
    """One of these as TensorData, which knows no int32."""
    dtype = NUMPY_TYPES[message.dtype]
    sparse = message.WhichOneof("encoding") == "sparse_csr"
    data = np.frombuffer(message.sparse_csr.values if sparse else message.dense, dtype)
    answer: dict[str, Any] = {
        "data": data.tolist(),
        "dtype": "float32" if dtype.kind == "f" else "int64",
        "shape": list(message.shape),
    }
    if sparse:
        answer["sparse_crow_indices"] = np.frombuffer(message.sparse_csr.crow_indices, "<i8").tolist()
        answer["sparse_col_indices"] = np.frombuffer(message.sparse_csr.col_indices, "<i8").tolist()
    return answer


def _has_bool(values: list[Any]) -> bool:
    """Whether there is a true or false in a list that is an array: numpy reads them as 1 and 0 where numbers are."""
    kinds = set(map(type, values))
    return bool in kinds or (list in kinds and any(_has_bool(inner) for inner in values))


def batched_tensor(arrays: Sequence[npt.NDArray[np.float32]]) -> pb.BatchedTensor:
    """One float32 field of one or more datums, (N,) each or (N, K) each with the same K."""
    offsets = np.cumsum([0] + [array.nbytes for array in arrays], dtype="<i8")
    data = np.concatenate(arrays).astype("<f4", copy=False).tobytes()
    return pb.BatchedTensor(
        data=data, offsets=offsets.tobytes(), dtype=pb.DTYPE_FLOAT32, trailing_shape=arrays[0].shape[1:]
    )


def unbatched(field: pb.BatchedTensor) -> list[npt.NDArray[np.float32]]:
    """The datums' arrays of such a field."""
    values = np.frombuffer(field.data, "<f4")
    borders = np.frombuffer(field.offsets, "<i8") // 4
    return [values[start:stop].reshape(-1, *field.trailing_shape) for start, stop in pairwise(borders)]
