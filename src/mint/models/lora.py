"""LoRA on linear layers, for batches whose tokens belong to different adapters.

Layers that read the same input, such as the projections to queries, keys and values, form a group: one base product
for all tokens and layers, then the low-rank parts of each stretch of the batch.

Shapes: T tokens of the batch, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mint.models.low_rank import Part, low_rank_parts
from mint.models.products import Product
from mint.models.segments import ActiveSegments, Stretch, columns_of

SiteKind = Literal["attn", "mlp", "unembed"]


@dataclass(frozen=True)
class LinearSite:
    """A linear layer that adapters may change.

    `name` is its path in the base model, as PEFT writes it; `group` the number of the group it belongs to.
    """

    index: int
    name: str
    kind: SiteKind
    in_features: int
    out_features: int
    group: int


class BaseProduct(Protocol):
    """The product of a group's inputs with its base weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, I) → (T, ΣO)."""
        ...

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """What belongs to each layer of (T, ΣO)."""
        ...

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of x (T, I), from those of the layers' outputs."""
        ...


class FrozenGroup:
    """The base weights of a group, `weight` (ΣO, I) and `bias` (ΣO,), of which each layer has some `columns`.

    Args:
        index: the group's number.
        sizes: O of each layer.
        packed: see `Product`.
    """

    def __init__(self, index: int, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], *, packed: bool) -> None:
        self.index = index
        self.columns = columns_of(sizes)
        self.weights = tuple(weight[columns] for columns in self.columns)
        self._forward = Product(weight, bias, packed=packed)
        self._backward = [Product(layer.t(), packed=packed) for layer in self.weights]

    def product(self, x: Tensor, active: ActiveSegments, current: Sequence[Stretch]) -> tuple[Tensor, ...]:
        """What each layer makes of x (T, I), whose rows `current` divides between adapters."""
        return adapted(self, x, low_rank_parts(current, self.index, self.columns), active)

    def forward(self, x: Tensor) -> Tensor:
        """See `BaseProduct`."""
        return self._forward(x)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """See `BaseProduct`."""
        return tuple(y[:, columns] for columns in self.columns) if len(self.columns) > 1 else (y,)

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """See `BaseProduct`."""
        first, *others = (product(grad) for product, grad in zip(self._backward, grads, strict=True))
        for other in others:
            first.add_(other)
        return first


def adapted(base: BaseProduct, x: Tensor, parts: Sequence[Part], active: ActiveSegments) -> tuple[Tensor, ...]:
    """What each layer of a group makes of x (T, I): the base product and the adapters' parts."""
    if torch.is_grad_enabled():
        # a batch without adapters has nothing to go back to, and goes forward without autograd
        anchor = active.anchor if parts else None
        outputs: tuple[Tensor, ...] = _GroupProduct.apply(x, base, parts, anchor)  # type: ignore[no-untyped-call]
        return outputs
    y = base.forward(x)
    for part in parts:
        part.add_forward(x, y)
    return base.split(y)


class LinearGroup:
    """Frozen linear layers of one input, with their weights below each other as one matrix.

    The layers are asked one after the other, by transformers' modules; the first one that is asked computes them all.
    """

    def __init__(self, layers: Sequence[nn.Linear], index: int, active: ActiveSegments, *, packed: bool) -> None:
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(layers) > 1 else weights[0]
        sizes = [layer.out_features for layer in layers]
        self.frozen = FrozenGroup(index, weight, _joined_bias(layers), sizes, packed=packed)
        self._active = active
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def output(self, layer: int, x: Tensor) -> Tensor:
        """What one layer makes of x (…, I)."""
        if self._input is not x or self._outputs[layer] is None:
            flat = x.reshape(-1, x.shape[-1])
            outputs = self.frozen.product(flat, self._active, self._active.current)
            self._input, self._outputs = x, [y.view(*x.shape[:-1], y.shape[-1]) for y in outputs]
        y = self._outputs[layer]
        assert y is not None
        self._outputs[layer] = None
        if all(output is None for output in self._outputs):
            self._input = None
        return y


def _joined_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    zeros = (layer.weight.new_zeros(layer.out_features) for layer in layers)
    biases = [zero if layer.bias is None else layer.bias.detach() for layer, zero in zip(layers, zeros, strict=True)]
    return torch.cat(biases)


class LoraLinear(nn.Module):
    """A frozen linear layer of a group, with the low-rank parts of whichever adapters the running batch names."""

    def __init__(self, base: nn.Linear, group: LinearGroup, layer: int) -> None:
        super().__init__()
        # a view of the group's: the base model's own copy is freed
        self.weight = nn.Parameter(group.frozen.weights[layer], requires_grad=False)
        self.bias: Tensor | None = base.bias
        self.in_features = base.in_features
        self.out_features = base.out_features
        self._group = group
        self._layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        return self._group.output(self._layer, x)


class _GroupProduct(torch.autograd.Function):
    """Y = x Wᵀ + bias + Σ segments' low-rank parts, one output for each layer; W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        group: BaseProduct,
        parts: Sequence[Part],
        anchor: Tensor | None,  # noqa: ARG004  # see ActiveSegments
    ) -> tuple[Tensor, ...]:
        y = group.forward(x)
        projected = [part.add_forward(x, y) for part in parts]
        ctx.save_for_backward(x, *projected)
        ctx.group, ctx.parts = group, parts
        return group.split(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *projected = ctx.saved_tensors
        group: BaseProduct = ctx.group
        grad_x = group.backward(grads) if ctx.needs_input_grad[0] else None
        for part, xa in zip(ctx.parts, projected, strict=True):
            part.add_backward(x, xa, grads, grad_x)
        return grad_x, None, None, None
