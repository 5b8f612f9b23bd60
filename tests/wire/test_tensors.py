"""Tensors of the protobuf half."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.errors import BadRequestError
from mint.wire import messages_pb2 as pb
from mint.wire.tensors import MAX_ELEMENTS, decode_tensor


def dense(values: Any, dtype: str, wire: int, shape: tuple[int, ...] = ()) -> pb.Tensor:
    return pb.Tensor(dense=np.asarray(values, dtype).tobytes(), dtype=wire, shape=shape)


def csr(values: Any, starts: list[int], columns: list[int], shape: tuple[int, ...], **fields: Any) -> pb.Tensor:
    content = pb.SparseCsr(
        values=np.asarray(values, "<f4").tobytes(),
        crow_indices=np.asarray(starts, "<i8").tobytes(),
        col_indices=np.asarray(columns, "<i8").tobytes(),
    )
    return pb.Tensor(sparse_csr=content, dtype=fields.get("dtype", pb.DTYPE_FLOAT32), shape=shape)


@pytest.mark.parametrize(
    ("tensor", "dtype", "expected"),
    [
        (dense([1, -2], "<f4", pb.DTYPE_FLOAT32), np.float32, [1, -2]),
        (dense([1, -2], "<i8", pb.DTYPE_INT64), np.int64, [1, -2]),
        (dense([1, -2], "<i4", pb.DTYPE_INT32), np.int64, [1, -2]),
        (dense([0x3FC0, 0xC000], "<u2", pb.DTYPE_BFLOAT16), np.float32, [1.5, -2]),
        (dense([1, 2, 3, 4], "<f4", pb.DTYPE_FLOAT32, (2, 2)), np.float32, [[1, 2], [3, 4]]),
        (dense([], "<f4", pb.DTYPE_FLOAT32), np.float32, []),
        (dense([7], "<f4", pb.DTYPE_FLOAT32), np.float32, [7]),
    ],
)
def test_dense(tensor: pb.Tensor, dtype: type, expected: list[Any]) -> None:
    array = decode_tensor(tensor, "x", rows=2)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, expected)


def test_csr() -> None:
    array = decode_tensor(csr([5, 6, 7], [0, 2, 2, 3], [0, 3, 1], (3, 4)), "x", rows=3)
    np.testing.assert_array_equal(array, [[5, 0, 0, 6], [0, 0, 0, 0], [0, 7, 0, 0]])


@pytest.mark.parametrize(
    "tensor",
    [
        pb.Tensor(dense=b"123", dtype=pb.DTYPE_FLOAT32),
        pb.Tensor(dense=b"1234", dtype=pb.DTYPE_UNSPECIFIED),
        pb.Tensor(dense=b"1234", dtype=9),
        dense([1, 2], "<f4", pb.DTYPE_FLOAT32, (3,)),
        dense([1, 2], "<f4", pb.DTYPE_FLOAT32, (-1, -2)),
        csr([1], [0, 1, 1], [0], (2,)),
        csr([1], [0, 1, 1], [0], (2, 2, 1)),
        csr([1], [0, 1, 1], [0], (3, 2)),
        csr([], [0, 0, 0], [], (2, -1)),
        csr([], [0, 0, 0], [], (2, MAX_ELEMENTS)),
        csr([1], [0, 1], [0], (2, 2)),
        csr([1], [1, 1, 1], [0], (2, 2)),
        csr([1, 2], [0, 2, 1], [0, 1], (2, 2)),
        csr([1], [0, 1, 1], [2], (2, 2)),
        csr([1], [0, 1, 1], [-1], (2, 2)),
        csr([1, 2], [0, 1, 1], [0], (2, 2)),
    ],
)
def test_inconsistent_tensors_are_refused(tensor: pb.Tensor) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode_tensor(tensor, "data[0].x", rows=2)
    assert caught.value.field == "data[0].x"


def test_a_sparse_tensor_without_tokens_is_refused() -> None:
    with pytest.raises(BadRequestError):
        decode_tensor(csr([], [0], [], (0, -5)), "x", rows=0)


@given(
    st.binary(max_size=64),
    st.integers(0, 5),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=3),
    st.booleans(),
)
def test_any_tensor_is_read_or_refused(data: bytes, dtype: int, shape: list[int], sparse: bool) -> None:
    tensor = pb.Tensor(dtype=dtype, shape=shape)
    if sparse:
        tensor.sparse_csr.CopyFrom(pb.SparseCsr(values=data[:8], crow_indices=data[8:32], col_indices=data[32:]))
    else:
        tensor.dense = data
    try:
        array = decode_tensor(tensor, "x", rows=2)
    except BadRequestError:
        return
    assert array.dtype in (np.float32, np.int64)
