"""Products with frozen weights, by the fastest exact library of the device.

On CPUs torch's own float32 product is MKL's, which on other vendors' processors leaves a sixth of the machine idle;
oneDNN, which torch carries too, does not. Its operator has no public name, so it is named here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _onednn_linear() -> Callable[..., Any] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


ONEDNN_LINEAR = _onednn_linear()
"""X Wᵀ + bias, without autograd; None where this build of torch has none."""


WORTH_ONEDNN = 128
"""Rows; for fewer, it takes longer to lay the weights out for oneDNN than its product saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(T, I), (O, I), (O,) → (T, O). No gradient."""
    if len(x) >= WORTH_ONEDNN and ONEDNN_LINEAR is not None and not x.is_cuda and x.dtype == torch.float32:
        y: Tensor = ONEDNN_LINEAR(x, weight, bias, "none", [], "")
        return y
    return torch.nn.functional.linear(x, weight, bias)


def linear_backward(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `linear` by x: (T, O), (O, I) → (T, I)."""
    return linear(grad, weight.t())


def linear_backward_all(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The sum of `linear_backward` over several layers of one input."""
    first = linear_backward(grads[0], weights[0])
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        if len(grad) < WORTH_ONEDNN:
            first.addmm_(grad, weight)
        else:  # two products and a sum are faster than MKL's product that adds
            first.add_(linear_backward(grad, weight))
    return first
