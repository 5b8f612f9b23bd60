"""The experts of a layer, all in one product each way: for CUDA, where one after the other leaves most of it idle.

Computes what `AdaptedExperts` computes. A row is a token with one of the experts that it chose.

Shapes: T tokens, k experts for each, N = T · k rows, X experts, E hidden size, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from mint.models.lora import adapted
from mint.models.low_rank import Part, SinglePart, StackedPart
from mint.models.products import grouped
from mint.models.segments import GROUPED_RANKS, ActiveSegments, AdapterSlot, GroupWeights, columns_of


@dataclass(frozen=True)
class Piece:
    """Rows start ≤ n < stop: tokens that one expert computes with one adapter."""

    start: int
    stop: int
    expert: int
    adapter: AdapterSlot | None


@dataclass(frozen=True)
class RoutedProduct:
    """A `BaseProduct` with the weights (X, ΣO, I) of all experts, whose rows end at `ends`, int32 (X,)."""

    weight: Tensor
    columns: Sequence[slice]
    ends: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """See `BaseProduct`."""
        return grouped(x, self.weight.mT, self.ends)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """See `BaseProduct`."""
        return tuple(y[:, columns] for columns in self.columns)

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """See `BaseProduct`."""
        return grouped(torch.cat(list(grads), dim=1), self.weight, self.ends)


class GroupedExperts:
    """See `AdaptedExperts`, whose arguments these are."""

    def __init__(self, module: Any, group: int, active: ActiveSegments) -> None:
        self._module = module
        self._group = group
        self._active = active
        self._num_experts, hidden, width = module.down_proj.shape
        self._columns = columns_of([width, width]), columns_of([hidden])

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(T, E), the experts of each token int64 (T, k), and their weights (T, k) → (T, E)."""
        order, pieces = self._sort(chosen)
        rows = order // chosen.shape[1]
        counts = chosen.flatten().bincount(minlength=self._num_experts)
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = self._product(self._module.gate_up_proj, 0, hidden[rows], ends, pieces)
        (out,) = self._product(self._module.down_proj, 1, self._module.act_fn(gate) * up, ends, pieces)
        result = torch.zeros_like(hidden)
        return result.index_add_(0, rows, (out * weights.flatten()[order, None]).to(result.dtype))

    def _sort(self, chosen: Tensor) -> tuple[Tensor, list[Piece]]:
        """The places in `chosen` by expert, then by segment, then by token; and where these change."""
        segments = self._active.segments
        adapters = [segment.adapter for segment in segments] or [None]
        borders = torch.tensor([segment.stop for segment in segments[:-1]], device=chosen.device)
        tokens = torch.arange(len(chosen), device=chosen.device)
        key = (chosen * len(adapters) + torch.bucketize(tokens, borders, right=True)[:, None]).flatten()
        stops = list(accumulate(key.bincount(minlength=self._num_experts * len(adapters)).tolist()))
        pieces = [
            Piece(start, stop, number // len(adapters), adapters[number % len(adapters)])
            for number, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))
            if start < stop
        ]
        return key.argsort(stable=True), pieces

    def _product(
        self, weight: Tensor, which: int, x: Tensor, ends: Tensor, pieces: Sequence[Piece]
    ) -> tuple[Tensor, ...]:
        columns = self._columns[which]
        parts = list(_parts(pieces, self._group + which, columns, x.device))
        return adapted(RoutedProduct(weight, columns, ends), x, parts, self._active)


def _parts(pieces: Sequence[Piece], group: int, columns: Sequence[slice], device: torch.device) -> Iterator[Part]:
    """What adapters add, `group` being that of the first expert; neighbours of one shape together."""
    for _, same in groupby(pieces, key=lambda piece: _likeness(piece.adapter)):
        members = list(same)
        adapter = members[0].adapter
        if adapter is None or (own := _weights(members, group)) is None:
            continue
        if adapter.rank % GROUPED_RANKS:
            rows = [slice(piece.start, piece.stop) for piece in members]
            yield from (SinglePart(r, w, adapter.scale, columns, whole=False) for r, w in zip(rows, own, strict=True))
            continue
        first = members[0].start
        ends = torch.tensor([piece.stop - first for piece in members], dtype=torch.int32, device=device)
        yield StackedPart(slice(first, members[-1].stop), _stacked(own), own, adapter.scale, columns, ends)


def _likeness(adapter: AdapterSlot | None) -> object:
    return None if adapter is None else (adapter.scale, adapter.shape)


def _weights(members: Sequence[Piece], group: int) -> list[GroupWeights] | None:
    """Of each piece's expert; None where adapters of this shape leave experts as they are."""
    found = [piece.adapter.group(group + 2 * piece.expert) for piece in members if piece.adapter is not None]
    there = [weights for weights in found if weights is not None]
    return there or None


def _stacked(own: Sequence[GroupWeights]) -> GroupWeights:
    """A copy of the factors, side by side."""
    layers = zip(*(weights.b for weights in own), strict=True)
    return GroupWeights(torch.stack([w.a for w in own]), tuple(torch.stack(b) for b in layers), None, None)
