"""What adapters add to the outputs of linear layers, for batches whose tokens belong to different adapters.

A part is that of one segment, or of several next to each other. The backward pass is written by hand: it adds the
gradients of A and B straight into the adapter's own buffer, where autograd would build one tensor per layer and adapter
and add them later.

Shapes: T tokens of the batch, n of a segment, S stacked segments, I inputs, O outputs of a layer, r rank, R = r times
the layers of the group. A is (r, I), B is (O, r), as in PEFT; a group's A factors lie below each other as one (R, I).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from mint.models.products import WORTH_ONEDNN, grouped, grouped_outer, linear
from mint.models.segments import GroupWeights, Stretch
from mint.models.threads import WIDE


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
    """The low-rank parts of adjoining segments in one group, as batched products.

    Attributes:
        weights: stacked.
        own: each adapter's own, to whose gradients it adds where they are not stacked too.
        ends: where each segment ends, int32 (S,), counted from the first row; None where all are of one length.
    """

    rows: slice
    weights: GroupWeights
    own: Sequence[GroupWeights]
    scale: float
    columns: Sequence[slice]
    ends: Tensor | None = None

    def _of(self, batch: Tensor) -> Tensor:
        """Of segments of one length (S, n, …), of others (Σn, …)."""
        rows = batch[self.rows]
        return rows if self.ends is not None else rows.view(len(self.own), -1, rows.shape[-1])

    def _product(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Each segment's rows times its own of (S, I, O)."""
        return torch.bmm(x, matrices) if self.ends is None else grouped(x, matrices, self.ends)

    def _outer(self, g: Tensor, x: Tensor) -> Tensor:
        """Σ g xᵀ over each segment's rows, (S, O, I)."""
        return torch.bmm(g.mT, x) if self.ends is None else grouped_outer(g, x, self.ends)

    def project(self, x: Tensor) -> Tensor:
        """The products x A, (S, n, R) or (Σn, R)."""
        return self._product(self._of(x), self.weights.a.to(x.dtype).mT)

    def add_forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As `SinglePart.add_forward`; x A is as `project` says."""
        xa, y = self.project(x), self._of(y)
        for b, columns, ranks in zip(self.weights.b, self.columns, self.weights.ranks, strict=True):
            # not baddbmm: some columns of y are nothing that a batched product could add to
            y[..., columns].add_(self._product(xa[..., ranks], b.to(xa.dtype).mT), alpha=self.scale)
        return xa

    def add_backward(self, x: Tensor, xa: Tensor, grads: Sequence[Tensor], grad_x: Tensor | None) -> None:
        """As `SinglePart.add_backward`."""
        weights, g = self.weights, [self._of(grad) for grad in grads]
        pieces = [self._product(grad, b.to(grad.dtype)) for grad, b in zip(g, weights.b, strict=True)]
        gb = (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)).mul_(self.scale)
        if grad_x is not None:
            self._add_to_inputs(grad_x, gb)
        if weights.grad_a is not None and weights.grad_b is not None:
            self._add_outer(weights.grad_a, gb, self._of(x), 1.0)
            for grad_b, grad, ranks in zip(weights.grad_b, g, weights.ranks, strict=True):
                self._add_outer(grad_b, grad, xa[..., ranks], self.scale)
            return
        add_to_each([w.grad_a for w in self.own], self._outer(gb, self._of(x)))
        for layer, (grad, ranks) in enumerate(zip(g, weights.ranks, strict=True)):
            grads_b = [w.grad_b[layer] if w.grad_b is not None else None for w in self.own]
            add_to_each(grads_b, self._outer(grad, xa[..., ranks]), alpha=self.scale)

    def _add_outer(self, target: Tensor, g: Tensor, x: Tensor, alpha: float) -> None:
        if self.ends is None and g.dtype == target.dtype:
            target.baddbmm_(g.mT, x, alpha=alpha)
        else:
            target.add_(self._outer(g, x), alpha=alpha)

    def _add_to_inputs(self, grad_x: Tensor, gb: Tensor) -> None:
        a = self.weights.a.to(gb.dtype)
        if self.ends is None:
            self._of(grad_x).baddbmm_(gb, a)
        else:
            self._of(grad_x).add_(self._product(gb, a))


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
            parts.append(StackedPart(stretch.rows, weights, own, adapter.scale, columns, stretch.ends))
    return parts
