"""Products by the fastest exact library of the device.

On CPUs torch's own float32 product is MKL's, which on other vendors' processors leaves a sixth of the machine idle;
oneDNN, which torch carries too, does not. It can also keep weights in a layout of its own, which makes products of few
rows a half faster still, at the price of a copy for each direction: worth it for small models. These operators have no
public names, so they are named here and nowhere else; a test fails when they move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mint.models.threads import WIDE

GROUPED_BYTES = 16
"""What grouped products want rows of matrices to be multiples of."""

PACKED_BYTES = 256 << 20
"""Models whose linear layers have no more than this are packed."""

WORTH_ONEDNN = 128
"""Rows; for fewer, laying out weights that are not packed takes longer than oneDNN's product saves."""


def _operator(name: str) -> Callable[..., Any] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(getattr(torch.ops.mkldnn, name, None), "default", None)


ONEDNN_LINEAR = _operator("_linear_pointwise")
"""X Wᵀ + bias, without autograd; None where this build of torch has none."""

ONEDNN_PACK = _operator("_reorder_linear_weight")
"""A weight in oneDNN's layout, as its product takes it."""


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN could keep this weight in a layout of its own."""
    found = ONEDNN_LINEAR is not None and ONEDNN_PACK is not None
    return found and weight.device.type == "cpu" and weight.dtype == torch.float32


def can_group(weight: Tensor) -> bool:
    """Whether products with this weight, and with low-rank factors beside it, are worth to be grouped.

    CUDA computes all groups at once, in bfloat16; on CPUs torch computes one after the other.
    """
    sizes = (size * weight.dtype.itemsize for size in weight.shape[-2:])
    return weight.is_cuda and weight.dtype == torch.bfloat16 and not any(size % GROUPED_BYTES for size in sizes)


def grouped(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Rows of x (n, I) up to `ends` int32 (G,), each group with its own of (G, I, O) → (n, O). No gradient."""
    return torch.nn.functional.grouped_mm(x, matrices, offs=ends)


def grouped_outer(g: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """The sums over each group's rows of g (n, O) times x (n, I) → (G, O, I). No gradient."""
    return torch.nn.functional.grouped_mm(g.T, x, offs=ends)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(T, I), (O, I), (O,) → (T, O). No gradient."""
    if len(x) >= WORTH_ONEDNN and ONEDNN_LINEAR is not None and not x.is_cuda and x.dtype == torch.float32:
        y: Tensor = ONEDNN_LINEAR(x, weight, bias, "none", [], "")
        return y
    return torch.nn.functional.linear(x, weight, bias)


class Product:
    """Rows times a frozen weight (O, I): x Wᵀ + bias. No gradient.

    Args:
        packed: keep the weight in oneDNN's layout as well.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, packed: bool) -> None:
        self._weight = weight
        self._bias = bias
        self._packed: Tensor | None = None
        if packed:
            assert ONEDNN_PACK is not None
            self._packed = ONEDNN_PACK(weight.contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, I) → (T, O)."""
        with WIDE:
            if self._packed is None or ONEDNN_LINEAR is None:
                return linear(x, self._weight, self._bias)
            y: Tensor = ONEDNN_LINEAR(x, self._packed, self._bias, "none", [], "")
            return y
