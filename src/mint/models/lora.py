"""LoRA on linear layers, for batches whose tokens belong to different adapters.

A batch is the concatenation of segments; the tokens of one adapter lie next to each other. Every adapted
layer computes the base product once for all tokens, then adds each segment's low-rank part. The backward pass
is written by hand because it adds the gradients of A and B straight into the adapter's own buffer: autograd
would build one tensor per layer and adapter and add them later.

Shapes: T tokens of the batch, n of a segment, I inputs, O outputs, r rank. A is (r, I), B is (O, r), as in
PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

SiteKind = Literal["attn", "mlp", "unembed"]


@dataclass(frozen=True)
class LinearSite:
    """A linear layer that adapters may change; `name` is its path in the base model, as PEFT writes it."""

    index: int
    name: str
    kind: SiteKind
    in_features: int
    out_features: int


@dataclass(frozen=True)
class SiteWeights:
    """One adapter's factors at one site, views of its flat buffers. A revision has no gradients."""

    a: Tensor
    b: Tensor
    grad_a: Tensor | None
    grad_b: Tensor | None


class AdapterSlot(Protocol):
    """What a layer needs of an adapter."""

    scale: float

    def site(self, index: int) -> SiteWeights | None:
        """The factors at a site, or None where this adapter leaves the base layer as it is."""
        ...


@dataclass(frozen=True)
class Segment:
    """Tokens start ≤ t < stop of a batch, and the adapter they run through; None is the base model."""

    start: int
    stop: int
    adapter: AdapterSlot | None


class ActiveSegments:
    """The segments of the batch that is running now, shared by all layers of one model.

    A model runs one batch at a time, so this is a plain attribute and not an argument: the linear layers are
    called from inside transformers' modules, which pass hidden states and nothing else.
    """

    def __init__(self) -> None:
        self.current: Sequence[Segment] = ()
        # Base and inputs are frozen and the factors' gradients bypass autograd. This makes it go backward all the same,
        # from the last adapted layer down to the first and no further.
        self.anchor = torch.zeros((), requires_grad=True)

    @contextmanager
    def use(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Run the body's forward passes under `segments`."""
        self.current = segments
        try:
            yield
        finally:
            self.current = ()


@dataclass(frozen=True)
class LowRankPart:
    """A segment at one site: its slice of the batch, its factors, and their scale.

    `whole` says that the slice is all of the batch, which saves taking it.
    """

    rows: slice
    weights: SiteWeights
    scale: float
    whole: bool = False

    def _of(self, batch: Tensor) -> Tensor:
        return batch if self.whole else batch[self.rows]

    def add_forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y[rows] += scale · (x A) B in place; returns the (n, r) product x A, which the backward needs."""
        xa = self._of(x) @ self.weights.a.T
        self._of(y).addmm_(xa, self.weights.b.T, alpha=self.scale)
        return xa

    def add_backward(self, x: Tensor, xa: Tensor, grad_y: Tensor, grad_x: Tensor | None) -> None:
        """Add this part's share to grad_x[rows], where wanted, and to the gradients of its factors, all in place."""
        weights, g = self.weights, self._of(grad_y)
        gb = (g @ weights.b).mul_(self.scale)
        if grad_x is not None:
            self._of(grad_x).addmm_(gb, weights.a)
        if weights.grad_a is not None and weights.grad_b is not None:
            weights.grad_a.addmm_(gb.T, self._of(x))
            weights.grad_b.addmm_(g.T, xa, alpha=self.scale)


def low_rank_parts(segments: Sequence[Segment], site: int) -> list[LowRankPart]:
    """The parts that segments add at a site; empty where all of them leave the base layer as it is."""
    parts = []
    whole = len(segments) == 1
    for segment in segments:
        if segment.adapter is not None and (weights := segment.adapter.site(site)) is not None:
            rows = slice(segment.start, segment.stop)
            parts.append(LowRankPart(rows, weights, segment.adapter.scale, whole))
    return parts


class LoraLinear(nn.Module):
    """A frozen linear layer with the low-rank parts of whichever adapters the running batch names."""

    def __init__(self, base: nn.Linear, site: int, active: ActiveSegments) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.in_features = base.in_features
        self.out_features = base.out_features
        self._site = site
        self._active = active

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        parts = low_rank_parts(self._active.current, self._site)
        if not parts:
            return nn.functional.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, self.in_features)
        y: Tensor = _LoraProduct.apply(flat, self.weight, self.bias, parts, self._active.anchor)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)


class _LoraProduct(torch.autograd.Function):
    """Y = x Wᵀ + bias + Σ segments' low-rank parts; W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parts: list[LowRankPart],
        anchor: Tensor,  # noqa: ARG004  # see ActiveSegments
    ) -> Tensor:
        y = nn.functional.linear(x, weight, bias)
        projected = [part.add_forward(x, y) for part in parts]
        ctx.save_for_backward(x, weight, *projected)
        ctx.parts = parts
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_y,) = grads
        x, weight, *projected = ctx.saved_tensors
        grad_x = grad_y @ weight if ctx.needs_input_grad[0] else None
        for part, xa in zip(ctx.parts, projected, strict=True):
            part.add_backward(x, xa, grad_y, grad_x)
        return grad_x, None, None, None, None
