"""LoRA on linear layers, for batches whose tokens belong to different adapters.

Layers that read the same input, such as the projections to queries, keys and values, form a group: one base product
for all tokens and layers, then the low-rank parts of each stretch of the batch. The backward pass is written by hand
because it adds the gradients of A and B straight into the adapter's own buffer: autograd would build one tensor per
layer and adapter and add them later.

Shapes: T tokens of the batch, n of a segment, S stacked segments, I inputs, O outputs of a layer, r rank, R = r times
the layers of the group. A is (r, I), B is (O, r), as in PEFT; a group's A factors lie below each other as one (R, I).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from mint.models.products import WORTH_ONEDNN, Product, linear
from mint.models.segments import ActiveSegments, GroupWeights, Stretch, columns_of
from mint.models.threads import WIDE

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


@dataclass(frozen=True)
class SinglePart:
    """The low-rank part of one segment in one group. `columns`: where each layer's outputs lie in the group's."""

    rows: slice
    weights: GroupWeights
    scale: float
    columns: Sequence[slice]
    whole: bool

    @property
    def _is_long(self) -> bool:
        return bool(self.rows.stop - self.rows.start >= WORTH_ONEDNN)

    def _of(self, batch: Tensor) -> Tensor:
        return batch if self.whole else batch[self.rows]

    def project(self, x: Tensor) -> Tensor:
        """The (n, R) product x A."""
        x = self._of(x)
        return linear(x, self.weights.a.to(x.dtype))

    def add_forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y[rows] += scale · (x A) B in place, for each layer; returns the (n, R) product x A for the backward pass."""
        with WIDE.when(self._is_long):
            xa, y = self.project(x), self._of(y)
            for b, columns, ranks in zip(self.weights.b, self.columns, self.weights.ranks, strict=True):
                y[:, columns].addmm_(xa[:, ranks], b.to(xa.dtype).T, alpha=self.scale)
        return xa

    def add_backward(self, x: Tensor, xa: Tensor, grads: Sequence[Tensor], grad_x: Tensor | None) -> None:
        """Add this part's share to grad_x[rows], where wanted, and to the gradients of its factors, all in place.

        `grads` has the gradient of each layer's outputs, (T, O).
        """
        weights = self.weights
        if not self.whole:
            grads = [grad[self.rows] for grad in grads]
        with WIDE.when(self._is_long):
            pieces = [torch.mm(grad, b.to(grad.dtype)) for grad, b in zip(grads, weights.b, strict=True)]
            gb = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
            if grad_x is not None:
                self._of(grad_x).addmm_(gb, weights.a.to(gb.dtype), alpha=self.scale)
            if weights.grad_a is not None and weights.grad_b is not None:
                add_product(weights.grad_a, gb.T, self._of(x), self.scale)
                for grad_b, grad, ranks in zip(weights.grad_b, grads, weights.ranks, strict=True):
                    add_product(grad_b, grad.T, xa[:, ranks], self.scale)


@dataclass(frozen=True)
class StackedPart:
    """The low-rank parts of short segments of one length in one group, as batched products.

    `weights` are stacked; `own` has each adapter's own, to whose gradients it adds where they are not stacked too.
    """

    rows: slice
    weights: GroupWeights
    own: Sequence[GroupWeights]
    scale: float
    columns: Sequence[slice]

    def _of(self, batch: Tensor) -> Tensor:
        rows = batch[self.rows]
        return rows.view(len(self.own), -1, rows.shape[-1])

    def project(self, x: Tensor) -> Tensor:
        """The (S, n, R) products x A."""
        return torch.bmm(self._of(x), self.weights.a.to(x.dtype).mT)

    def add_forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As `SinglePart.add_forward`; x A is (S, n, R)."""
        xa, y = self.project(x), self._of(y)
        for b, columns, ranks in zip(self.weights.b, self.columns, self.weights.ranks, strict=True):
            # not baddbmm: some columns of y are nothing that a batched product could add to
            y[:, :, columns].add_(torch.bmm(xa[:, :, ranks], b.to(xa.dtype).mT), alpha=self.scale)
        return xa

    def add_backward(self, x: Tensor, xa: Tensor, grads: Sequence[Tensor], grad_x: Tensor | None) -> None:
        """As `SinglePart.add_backward`."""
        weights, g = self.weights, [self._of(grad) for grad in grads]
        pieces = [torch.bmm(grad, b.to(grad.dtype)) for grad, b in zip(g, weights.b, strict=True)]
        gb = (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)).mul_(self.scale)
        if grad_x is not None:
            self._of(grad_x).baddbmm_(gb, weights.a.to(gb.dtype))
        if weights.grad_a is not None and weights.grad_b is not None:
            # not baddbmm, which takes what lies apart one by one
            weights.grad_a.add_(torch.bmm(gb.mT, self._of(x)))
            for grad_b, grad, ranks in zip(weights.grad_b, g, weights.ranks, strict=True):
                grad_b.add_(torch.bmm(grad.mT, xa[:, :, ranks]), alpha=self.scale)
            return
        add_to_each([w.grad_a for w in self.own], torch.bmm(gb.mT, self._of(x)))
        for layer, (grad, ranks) in enumerate(zip(g, weights.ranks, strict=True)):
            grads_b = [w.grad_b[layer] if w.grad_b is not None else None for w in self.own]
            add_to_each(grads_b, torch.bmm(grad.mT, xa[:, :, ranks]), alpha=self.scale)


Part: TypeAlias = SinglePart | StackedPart


def add_product(target: Tensor, left: Tensor, right: Tensor, alpha: float) -> None:
    """Target += alpha · left @ right, where target is float32 and the factors may be narrower."""
    if left.dtype == target.dtype:
        target.addmm_(left, right, alpha=alpha)
    elif target.is_cuda:
        target.add_(torch.mm(left, right, out_dtype=target.dtype), alpha=alpha)
    else:
        target.add_(torch.mm(left.float(), right.float()), alpha=alpha)


def add_to_each(targets: Sequence[Tensor | None], products: Tensor, alpha: float = 1.0) -> None:
    """Targets[i] += alpha · products[i], for targets that are there."""
    there = [target for target in targets if target is not None]
    if there:
        torch._foreach_add_(there, list(products.to(there[0].dtype)), alpha=alpha)


def low_rank_parts(active: Sequence[Stretch], group: int, columns: Sequence[slice]) -> list[Part]:
    """What the adapters of a batch add in a group; empty where all of them leave it as it is."""
    parts: list[Part] = []
    for stretch in active:
        adapter, stack = stretch.adapter, stretch.stack
        if stack is None:
            if (weights := adapter.group(group)) is not None:
                parts.append(SinglePart(stretch.rows, weights, adapter.scale, columns, stretch.whole))
        elif (weights := stack.group(group)) is not None:
            own = [w for each in stack.adapters if (w := each.group(group)) is not None]
            parts.append(StackedPart(stretch.rows, weights, own, adapter.scale, columns))
    return parts


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
        self.forward = Product(weight, bias, packed=packed)
        self._backward = [Product(layer.t(), packed=packed) for layer in self.weights]

    def product(self, x: Tensor, active: ActiveSegments, current: Sequence[Stretch]) -> tuple[Tensor, ...]:
        """What each layer makes of x (T, I), whose rows `current` divides between adapters."""
        parts = low_rank_parts(current, self.index, self.columns)
        if not torch.is_grad_enabled():
            return self.forward_only(x, parts)
        # a batch without adapters has nothing to go back to, and goes forward without autograd
        anchor = active.anchor if parts else None
        outputs: tuple[Tensor, ...] = _GroupProduct.apply(x, self, parts, anchor)  # type: ignore[no-untyped-call]
        return outputs

    def forward_only(self, x: Tensor, parts: Sequence[Part]) -> tuple[Tensor, ...]:
        """`product`, of which nothing is kept for a backward pass."""
        y = self.forward(x)
        for part in parts:
            part.add_forward(x, y)
        return self.split(y)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """What belongs to each layer of (T, ΣO)."""
        return tuple(y[:, columns] for columns in self.columns) if len(self.columns) > 1 else (y,)

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of x (T, I), from those of the layers' outputs."""
        first, *others = (product(grad) for product, grad in zip(self._backward, grads, strict=True))
        for other in others:
            first.add_(other)
        return first


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
        group: FrozenGroup,
        parts: list[Part],
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
        group: FrozenGroup = ctx.group
        grad_x = group.backward(grads) if ctx.needs_input_grad[0] else None
        for part, xa in zip(ctx.parts, projected, strict=True):
            part.add_backward(x, xa, grads, grad_x)
        return grad_x, None, None, None
