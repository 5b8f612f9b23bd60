"""Operations of a custom loss that pick, place and split, with checks that torch's own lack.

Indices that are tensors are checked against the dimension they point into before anything is read there: on a GPU an
index out of range ends the process, and with it everyone's work. And no tensor is split into so many that the objects,
not the numbers, take all memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MAX_PARTS = 256
"""Tensors that one operation may split another into."""


def check_indices(index: object, size: int, *, lowest: int = 0) -> None:
    """Refuse indices that point outside a dimension.

    Raises:
        IndexError: one is below `lowest` or not below `size`.
        TypeError: they are no whole numbers.
    """
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        raise TypeError("takes indices as a tensor of int64 or int32")
    if index.is_meta or not index.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < lowest or high >= size:
        wrong = low if low < lowest else high
        raise IndexError(f"index {wrong} is out of range; the dimension has size {size}")


def _gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    check_indices(index, input.size(dim))
    return torch.gather(input, dim, index)


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    check_indices(indices, input.numel() if dim is None else input.size(dim))
    return torch.take_along_dim(input, indices, dim)


def _index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    check_indices(index, input.size(dim))
    return torch.index_select(input, dim, index)


def _take(input: Tensor, index: Tensor) -> Tensor:
    check_indices(index, input.numel(), lowest=-input.numel())
    return torch.take(input, index)


def _scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, value: Any = None) -> Tensor:
    check_indices(index, input.size(dim))
    return torch.scatter(input, dim, index, src if value is None else value)


def _scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    check_indices(index, input.size(dim))
    return torch.scatter_add(input, dim, index, src)


def _index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> Tensor:
    check_indices(index, input.size(dim))
    return torch.index_add(input, dim, index, source, alpha=alpha)


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 1:
        raise ValueError("needs num_classes: the shape of its output must not depend on values")
    check_indices(input, num_classes)
    return functional.one_hot(input, num_classes)


def _get_item(value: Any, index: Any) -> Any:
    """value[index], of a tensor or of a tuple; a tensor takes whole numbers, slices, None, ... and index tensors."""
    if isinstance(value, tuple | list):
        return value[index]
    if not isinstance(value, Tensor):
        raise TypeError("takes a tensor or a tuple")
    if isinstance(index, Tensor) and not index.ndim:
        check_indices(index, value.size(0), lowest=-value.size(0))
        return value[index.reshape(1)].squeeze(0)
    parts = index if isinstance(index, tuple) else (index,)
    consumed = sum(part is not None and part is not Ellipsis for part in parts)
    if consumed > value.ndim:
        raise IndexError(f"has {consumed} indices for {value.ndim} dimensions")
    dim = 0
    for part in parts:
        if part is Ellipsis:
            dim += value.ndim - consumed
        elif part is not None:
            _check_index(part, value.size(dim))
            dim += 1
    return value[index]


def _check_index(part: object, size: int) -> None:
    if isinstance(part, Tensor) and part.dtype == torch.bool:
        raise TypeError("has a mask for an index: its output's shape would depend on values; use torch.where")
    if isinstance(part, Tensor) and not part.ndim:
        raise TypeError("has a scalar tensor among several indices; use take_along_dim")
    if isinstance(part, Tensor):
        check_indices(part, size, lowest=-size)
    elif isinstance(part, list):
        if not all(type(entry) is int and -size <= entry < size for entry in part):
            raise IndexError(f"takes a list of whole numbers within a dimension of size {size}")
    elif type(part) is not int and not isinstance(part, slice):
        raise TypeError(f"takes no {type(part).__name__} for an index")


def _check_parts(count: int) -> None:
    if count > MAX_PARTS:
        raise ValueError(f"makes {count} tensors; at most {MAX_PARTS} are allowed, so index instead")


def _unbind(input: Tensor, dim: int = 0) -> Sequence[Tensor]:
    _check_parts(input.size(dim))
    return torch.unbind(input, dim)


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    _check_parts(chunks)
    return torch.chunk(input, chunks, dim)


def _split(input: Tensor, split_size_or_sections: Any = None, dim: int = 0, *, split_size: Any = None) -> Any:
    sizes = split_size_or_sections if split_size is None else split_size
    _check_parts(len(sizes) if isinstance(sizes, tuple | list) else -(-input.size(dim) // max(sizes, 1)))
    return torch.split(input, sizes, dim)


OF_BOTH: Mapping[str, Callable[..., Any]] = {
    "gather": _gather,
    "take_along_dim": _take_along_dim,
    "index_select": _index_select,
    "take": _take,
    "scatter": _scatter,
    "scatter_add": _scatter_add,
    "index_add": _index_add,
    "unbind": _unbind,
    "chunk": _chunk,
    "split": _split,
}
INDEXING: Mapping[str, Callable[..., Any]] = {
    **{f"{module}.{name}": function for name, function in OF_BOTH.items() for module in ("torch", "Tensor")},
    "torch.nn.functional.one_hot": _one_hot,
    "operator.getitem": _get_item,
}
