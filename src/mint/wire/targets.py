"""`target_prompt_logprobs`: ids to score at each position of a prompt, and their log-probabilities in the same layout.

L tokens in the prompt; row i of a tensor of L − 1 rows is about position i + 1, as nothing precedes position 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mint.errors import BadRequestError
from mint.wire import messages_pb2 as pb
from mint.wire.tensors import Array, Csr, csr_tensor, dense_tensor, read_json_tensor

FIELD = "target_prompt_logprobs"
MAX_CELLS = 1 << 22
"""Ids in one request: their log-probabilities are 16 MiB."""


@dataclass(frozen=True)
class PromptTargets:
    """`ids` int64 (L − 1, K); −1 asks for nothing.

    Of a sparse tensor, `ids` has each row's listed ids at its front, and `sparse` where in `shape` they belong.
    """

    ids: npt.NDArray[np.int64]
    shape: tuple[int, int]
    sparse: Csr | None

    def answer(self, logprobs: npt.NDArray[np.float32]) -> pb.Tensor:
        """Log-probabilities, float32 shaped as `ids`, in the shape and layout of the request; 0 where none was due."""
        values = np.where(self.ids < 0, np.float32(0), logprobs)
        if self.sparse is None:
            return dense_tensor(values)
        _, starts, columns = self.sparse
        return csr_tensor(Csr(values[self.sparse.rows, _places(self.sparse)], starts, columns), self.shape)


def decode_targets(value: object, prompt_length: int) -> PromptTargets:
    """TensorData as JSON, dense or CSR.

    Raises:
        BadRequestError: it is no int64 (prompt_length − 1, K), is too large, or asks for nothing.
    """
    tensor = read_json_tensor(value, FIELD)
    rows = prompt_length - 1
    if tensor.dtype != np.int64 or len(tensor.shape) != 2 or tensor.shape[0] != rows:
        raise BadRequestError(
            f"is {tensor.dtype.name} {tensor.shape}; the prompt has {prompt_length} tokens, so it must be "
            f"int64 ({rows}, K)",
            field=FIELD,
        )
    shape = rows, tensor.shape[1]
    sparse = tensor.content if isinstance(tensor.content, Csr) else None
    ids = tensor.content.reshape(shape) if not isinstance(tensor.content, Csr) else _compact(tensor.content, shape)
    if ids.size > MAX_CELLS:
        raise BadRequestError(f"asks for {ids.size} ids, rows × longest row; at most {MAX_CELLS} are read", field=FIELD)
    if not (ids >= 0).any():
        raise BadRequestError("has no id that is 0 or more: there is nothing to score", field=FIELD)
    return PromptTargets(ids, shape, sparse)


def _compact(csr: Csr, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The listed ids of each row at its front, −1 behind them."""
    # ascending, as the SDK's decoder takes nothing else; no cell is listed twice then
    if not csr.fits(*shape) or not (np.diff(csr.rows * shape[1] + csr.columns) > 0).all():
        raise BadRequestError(
            "has CSR indices that do not fit its shape and values, or columns that do not ascend", field=FIELD
        )
    longest = int(np.diff(csr.starts).max(initial=0))
    if shape[0] * longest > MAX_CELLS:
        raise BadRequestError(f"has {shape[0]} rows of up to {longest} ids; at most {MAX_CELLS} are read", field=FIELD)
    ids = np.full((shape[0], longest), -1, np.int64)
    ids[csr.rows, _places(csr)] = csr.values
    return ids


def _places(csr: Csr) -> Array:
    """Of each value, its place among those of its row."""
    return np.arange(len(csr.values)) - csr.starts[csr.rows]
