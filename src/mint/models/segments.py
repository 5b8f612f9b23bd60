"""Which tokens of a batch run through which adapter.

A batch is the concatenation of segments; the tokens of one adapter lie next to each other. Short segments of adapters
of one shape are put together, so that a layer computes them as one batched product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor

STACKED_TOKENS = 128
"""Segments up to this length run as one batched product when there are several; longer ones fill the machine alone."""

STACKED_BYTES = 64 << 20
"""Copies of adapters that lie together for that; further ones run by themselves."""


GROUPED_RANKS = 8
"""Ranks that grouped products take are multiples of this."""


def columns_of(sizes: Sequence[int]) -> tuple[slice, ...]:
    """Where outputs of these sizes lie when they stand next to each other."""
    return tuple(slice(stop - size, stop) for stop, size in zip(accumulate(sizes), sizes, strict=True))


@dataclass(frozen=True)
class GroupWeights:
    """Factors of a group of layers: `a` (R, I), and `b` one (O, r) for each layer, views of flat buffers.

    Of stacked adapters each tensor has an axis S in front. A revision has no gradients. `ranks` tells where each
    layer's r columns lie in x A.
    """

    a: Tensor
    b: tuple[Tensor, ...]
    grad_a: Tensor | None
    grad_b: tuple[Tensor, ...] | None
    ranks: tuple[slice, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", columns_of([b.shape[-1] for b in self.b]))


class AdapterSlot(Protocol):
    """What a layer needs of an adapter.

    Attributes:
        scale: the factor in front of (xA)B.
        rank: of all factors.
        shape: what is equal for adapters that can be stacked.
        num_bytes: of all factors.
    """

    scale: float
    rank: int
    shape: object
    num_bytes: int

    def group(self, index: int) -> GroupWeights | None:
        """The factors in a group, or None where this adapter leaves its layers as they are."""
        ...

    def stack(self, others: Sequence[AdapterSlot]) -> AdapterStack:
        """This adapter and others of its shape, side by side."""
        ...


class AdapterStack(Protocol):
    """S adapters of one shape, side by side.

    Attributes:
        adapters: the same, one by one.
    """

    adapters: Sequence[AdapterSlot]

    def group(self, index: int) -> GroupWeights | None:
        """As `AdapterSlot.group`, with the axis S in front; without gradients where these lie apart."""
        ...


@dataclass(frozen=True)
class Segment:
    """Tokens start ≤ t < stop of a batch, and the adapter they run through; None is the base model."""

    start: int
    stop: int
    adapter: AdapterSlot | None


@dataclass(frozen=True)
class Stretch:
    """Tokens that run through one adapter, or part by part through those of a stack.

    Attributes:
        adapter: the one, or the first of the stack.
        whole: the rows are all of the batch, which saves taking them.
        ends: where the parts end, int32 (S,), counted from the first row; None where they are of one length.
    """

    rows: slice
    adapter: AdapterSlot
    stack: AdapterStack | None
    whole: bool
    ends: Tensor | None


def clip(segments: Sequence[Segment], rows: slice) -> list[Segment]:
    """The segments of a batch as they divide some of its rows."""
    cut = ((max(s.start, rows.start), min(s.stop, rows.stop), s.adapter) for s in segments)
    return [Segment(start - rows.start, stop - rows.start, adapter) for start, stop, adapter in cut if start < stop]


def select(segments: Sequence[Segment], rows: Tensor) -> list[Segment]:
    """The same for any rows, int64 (n,) in ascending order."""
    if not segments:
        return []
    borders = torch.tensor([[segment.start, segment.stop] for segment in segments], device=rows.device)
    cut = zip(torch.searchsorted(rows, borders).tolist(), segments, strict=True)
    return [Segment(start, stop, segment.adapter) for (start, stop), segment in cut if start < stop]


class StackCache:
    """Stacks by the adapters in them, so that a stack that copies weights is made once.

    For one batch, or kept from one to the next where the adapters never change.
    """

    def __init__(self) -> None:
        self._stacks: dict[tuple[int, ...], AdapterStack] = {}
        self._used: set[tuple[int, ...]] = set()

    def get(self, adapters: Sequence[AdapterSlot]) -> AdapterStack:
        """These adapters side by side."""
        key = tuple(map(id, adapters))  # a stack keeps its adapters, so their ids stay theirs
        if key not in self._stacks:
            self._stacks[key] = adapters[0].stack(adapters[1:])
        self._used.add(key)
        return self._stacks[key]

    def sweep(self) -> None:
        """Forget what was not asked for since the last sweep."""
        self._stacks = {key: stack for key, stack in self._stacks.items() if key in self._used}
        self._used.clear()


class ActiveSegments:
    """The segments of the batch that is running now, shared by all layers of one model.

    A model runs one batch at a time, so this is a plain attribute and not an argument: the linear layers are
    called from inside transformers' modules, which pass hidden states and nothing else.

    Args:
        device: where the model is.
        ragged: put segments of any lengths together, for grouped products.
    """

    def __init__(self, device: torch.device | None = None, *, ragged: bool = False) -> None:
        self._device = device
        self._ragged = ragged
        self.segments: Sequence[Segment] = ()
        self.current: Sequence[Stretch] = ()
        # Base and inputs are frozen and the factors' gradients bypass autograd. This makes it go backward all the same,
        # from the last adapted layer down to the first and no further.
        self.anchor = torch.zeros((), requires_grad=True)
        self._stacks: StackCache | None = None

    @contextmanager
    def stacking(self, stacks: StackCache) -> Iterator[None]:
        """Put adapters side by side in the body by way of `stacks`."""
        before, self._stacks = self._stacks, stacks
        try:
            yield
        finally:
            self._stacks = before

    @contextmanager
    def use(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Run the body's forward and backward passes under `segments`."""
        with self.stacking(self._stacks or StackCache()):
            self.segments, self.current = segments, self.stretches(segments)
            try:
                yield
            finally:
                self.segments, self.current = (), ()

    def stretches(self, segments: Sequence[Segment]) -> list[Stretch]:
        """The adapted segments of a batch, or of some of its rows; those that can run together put together."""
        found: list[Stretch] = []
        stacks = self._stacks or StackCache()
        adapted = [(s.start, s.stop, s.adapter) for s in segments if s.adapter is not None]
        for _, same in groupby(adapted, key=self._likeness):
            for members in _together(list(same)):
                rows, adapter = slice(members[0][0], members[-1][1]), members[0][2]
                stack = stacks.get([member for _, _, member in members]) if len(members) > 1 else None
                ends = self._ends(members) if stack is not None and self._is_ragged(adapter) else None
                found.append(Stretch(rows, adapter, stack, len(segments) == 1, ends))
        return found

    def _likeness(self, segment: tuple[int, int, AdapterSlot]) -> object:
        start, stop, adapter = segment
        if self._is_ragged(adapter):
            return adapter.scale, adapter.shape
        return (stop - start, adapter.scale, adapter.shape) if stop - start <= STACKED_TOKENS else start

    def _is_ragged(self, adapter: AdapterSlot) -> bool:
        return self._ragged and adapter.rank % GROUPED_RANKS == 0

    def _ends(self, members: Sequence[tuple[int, int, AdapterSlot]]) -> Tensor:
        first = members[0][0]
        return torch.tensor([stop - first for _, stop, _ in members], dtype=torch.int32, device=self._device)


def _together(members: Sequence[tuple[int, int, AdapterSlot]]) -> Iterator[Sequence[tuple[int, int, AdapterSlot]]]:
    """Cut where tokens of the base model lie between two segments, and where a stack would grow too large."""
    limit = max(1, STACKED_BYTES // max(1, members[0][2].num_bytes))
    first = 0
    for place in range(1, len(members) + 1):
        if place == len(members) or members[place][0] != members[place - 1][1] or place - first == limit:
            yield members[first:place]
            first = place
