"""target_prompt_logprobs: sent and read back by the official SDK's own tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinker import TensorData
from tinker.lib.public_interfaces.sampling_client import _tensor_data_to_model
from tinker.proto.response_conv import deserialize_sample_response

from mint.errors import BadRequestError
from mint.wire.samples import PromptPart, encode_sample, sample_as_json
from mint.wire.targets import MAX_CELLS, PromptTargets, decode_targets


def sent(tensor: TensorData) -> Any:
    """As it is in the request's JSON."""
    return json.loads(_tensor_data_to_model(tensor).model_dump_json(exclude_none=True))


def answered(targets: PromptTargets) -> tuple[TensorData, dict[str, Any]]:
    """What the SDK, and a reader of JSON, make of an answer of −id / 8 for each id."""
    logprobs = np.where(targets.ids < 0, np.nan, targets.ids / -8).astype(np.float32)
    body = encode_sample([], PromptPart(targets=targets.answer(logprobs)))
    read = deserialize_sample_response(body).target_prompt_logprobs
    assert read is not None
    return read, sample_as_json(body)["target_prompt_logprobs"]


def test_dense() -> None:
    ids = torch.tensor([[5, -1], [-1, 0], [7, 8]])
    targets = decode_targets(sent(TensorData.from_torch(ids)), prompt_length=4)
    np.testing.assert_array_equal(targets.ids, ids)
    read, as_json = answered(targets)
    assert (read.dtype, read.shape, read.sparse_crow_indices) == ("float32", [3, 2], None)
    assert read.tolist() == [[-0.625, 0], [0, 0], [-0.875, -1]]
    assert as_json == {"data": [-0.625, 0, 0, 0, -0.875, -1], "dtype": "float32", "shape": [3, 2]}


def test_csr_keeps_its_layout() -> None:
    ids = torch.full((6, 50), -1)
    ids[1, 40], ids[1, 49], ids[4, 3] = 5, 0, 8
    tensor = TensorData.from_torch_sparse(ids, pad_value=-1)
    assert tensor.sparse_crow_indices is not None
    targets = decode_targets(sent(tensor), prompt_length=7)
    assert targets.ids.tolist() == [[-1, -1], [5, 0], [-1, -1], [-1, -1], [8, -1], [-1, -1]]
    read, as_json = answered(targets)
    for layout in ("shape", "sparse_crow_indices", "sparse_col_indices"):
        assert getattr(read, layout) == getattr(tensor, layout) == as_json[layout]
    assert read.data == as_json["data"] == [-0.625, 0, -1]
    dense = read.to_torch()
    assert (dense[1, 40].item(), dense[4, 3].item(), dense.count_nonzero().item()) == (-0.625, -1, 2)


@given(st.data())
def test_any_layout_comes_back(data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    cells = data.draw(st.lists(st.integers(-1, 20), min_size=rows * width, max_size=rows * width))
    ids = torch.tensor(cells).reshape(rows, width)
    if (ids < 0).all():
        ids[0, 0] = 3
    for tensor in (TensorData.from_torch(ids), TensorData.from_torch_sparse(ids, pad_value=-1)):
        read, _ = answered(decode_targets(sent(tensor), rows + 1))
        assert read.sparse_col_indices == tensor.sparse_col_indices
        np.testing.assert_array_equal(read.to_numpy(), np.where(ids < 0, 0, ids / -8))


CSR = {"dtype": "int64", "shape": [2, 3], "data": [4, 5], "sparse_crow_indices": [0, 1, 2]}
BAD: dict[str, Any] = {
    "no tensor": [[1], [2]],
    "float": {"data": [1.0, 2.0], "dtype": "float32", "shape": [2, 1]},
    "fractions": {"data": [1.5, 2.0], "dtype": "int64", "shape": [2, 1]},
    "one dimension": {"data": [1, 2], "dtype": "int64"},
    "too few rows": {"data": [1], "dtype": "int64", "shape": [1, 1]},
    "shape of other data": {"data": [1, 2, 3], "dtype": "int64", "shape": [2, 2]},
    "nothing asked": {"data": [-1, -1], "dtype": "int64", "shape": [2, 1]},
    "nothing at all": {"data": [], "dtype": "int64", "shape": [2, 0]},
    "too many": {"data": [1] * (2 * MAX_CELLS), "dtype": "int64", "shape": [2, MAX_CELLS]},
    "columns missing": CSR,
    "column outside": {**CSR, "sparse_col_indices": [0, 3]},
    "columns that descend": {**CSR, "sparse_crow_indices": [0, 2, 2], "sparse_col_indices": [1, 0]},
    "a cell twice": {**CSR, "sparse_crow_indices": [0, 2, 2], "sparse_col_indices": [1, 1]},
    "rows that fall": {**CSR, "sparse_crow_indices": [0, 3, 2], "sparse_col_indices": [0, 1]},
    "nested indices": {**CSR, "sparse_crow_indices": [[0, 0], [1, 1], [2, 2]], "sparse_col_indices": [0, 1]},
    "huge and empty": {**CSR, "data": [], "shape": [2, 1 << 40], "sparse_crow_indices": [0, 0, 0]},
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        decode_targets(BAD[case], prompt_length=3)
    assert str(refused.value.field).startswith("target_prompt_logprobs")
