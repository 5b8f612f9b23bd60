"""Products with frozen weights, by the fastest exact library of the device.

On CPUs torch's own float32 product is MKL's, which on other vendors' processors leaves a sixth of the machine idle;
oneDNN, which torch carries too, does not. Its operator has no public name, so it is named here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _onednn_linear() -> Callable[..., Any] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


ONEDNN_LINEAR = _onednn_linear()
"""X Wᵀ + bias, without autograd; None where this build of torch has none."""


WORTH_ONEDNN = 1_000_000
"""Multiplications; for fewer, preparing the call takes longer than they do."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(T, I), (O, I), (O,) → (T, O). No gradient."""
    large = x.numel() * len(weight) >= WORTH_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
    if ONEDNN_LINEAR is not None and large:
        y: Tensor = ONEDNN_LINEAR(x, weight, bias, "none", [], "")
        return y
    return torch.nn.functional.linear(x, weight, bias)


def linear_backward(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `linear` with respect to x: (T, O), (O, I) → (T, I)."""
    return linear(grad, weight.t())
