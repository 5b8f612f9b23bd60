"""Many sequences, many adapters, one batch: concatenation instead of padding, shared beginnings once.

Shapes: T tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mint.engine.adapters import Adapter
from mint.engine.core import Int32Array, Int64Array
from mint.engine.prefixes import MIN_SHARED, common_prefix, sharing_order
from mint.models.attention import AttentionPlan, Blocks, PackedCausal, Prefix
from mint.models.segments import Segment


class Packable(Protocol):
    """A sequence and the adapter that it runs through."""

    @property
    def adapter(self) -> Adapter | None:
        """None is the base model."""
        ...

    @property
    def tokens(self) -> Int32Array:
        """Int32 (n,), n ≥ 1."""
        ...


class Sharable(Packable, Protocol):
    """A sequence that shares beginnings with others of the same `family`, which have the same adapter."""

    @property
    def family(self) -> Hashable:
        """Whatever tells families apart."""
        ...


P = TypeVar("P", bound=Packable)
S = TypeVar("S", bound=Sharable)


@dataclass(frozen=True)
class PackedBatch:
    """`tokens` and `positions` int64 (T,); `segments` cover 0 … T.

    `rows`: for each sequence, in the order they were given, where its tokens lie, int64 (n,). `plan` says which
    tokens see which.
    """

    tokens: Tensor
    positions: Tensor
    segments: list[Segment]
    rows: list[Int64Array]
    plan: AttentionPlan


def packing_order(items: Sequence[P]) -> list[P]:
    """Adapters in order of first appearance, and within each equal lengths side by side."""
    place: dict[int, int] = {}
    for item in items:
        place.setdefault(id(item.adapter), len(place))
    return sorted(items, key=lambda item: (place[id(item.adapter)], len(item.tokens)))


def pack(items: Sequence[Packable], device: torch.device) -> PackedBatch:
    """Concatenate `items`, which are in packing order; nothing is shared."""
    lengths = [len(item.tokens) for item in items]
    starts = np.cumsum([0, *lengths])
    return PackedBatch(
        _to_device(np.concatenate([item.tokens for item in items]), device),
        _to_device(np.concatenate([np.arange(length) for length in lengths]), device),
        adapter_segments([item.adapter for item in items], lengths),
        [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=False)],
        PackedCausal(lengths),
    )


def pack_shared(
    items: Sequence[Sharable], device: torch.device, blocks: Sequence[Blocks | None] | None = None
) -> PackedBatch:
    """Pack `items`, of which those of an adapter stand together; what one shares with that before it is there once.

    Args:
        blocks: of each item, None for one that is causal. A family may only share what is so for all of it.
    """
    layout = _SharedLayout()
    for item in items:
        layout.add(item)
    return layout.packed(device, blocks or [None] * len(items))


@dataclass(frozen=True)
class _Branch:
    """The tokens of a sequence from position `start` on, which lie in the rows from `row` on.

    `first` is the first row of the branches that leave the one above at the same place, this one or an earlier one.
    """

    start: int
    row: int
    first: int


class _SharedLayout:
    """Sequences one behind the other, each from where it leaves the one before it; see `mint.engine.prefixes`.

    All rows that see a stretch of a branch, but for the branch's own, follow each other without a gap.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._items: list[Sharable] = []
        self._rows: list[Int64Array] = []
        self._starts: list[int] = []
        self._prefixes: list[Prefix] = []
        self._open: list[_Branch] = []  # the branches of the last item, from the root on

    def add(self, item: Sharable) -> None:
        """Lay out what is new of a sequence."""
        last = self._items[-1] if self._items else None
        alike = last is not None and last.family == item.family
        start = self._leave(common_prefix(last.tokens, item.tokens) if last is not None and alike else 0)
        above = self._rows[-1][:start] if start else np.empty(0, np.int64)
        first_row, self.num_tokens = self.num_tokens, self.num_tokens + len(item.tokens) - start
        self._items.append(item)
        self._starts.append(start)
        self._rows.append(np.concatenate([above, np.arange(first_row, self.num_tokens)]))

    def _leave(self, shared: int) -> int:
        """Begin a branch where the next sequence leaves the last one, or a little before; returns that position."""
        closed: _Branch | None = None
        while self._open and shared - self._open[-1].start < MIN_SHARED:
            if closed is not None:
                self._close(closed)
            closed = self._open.pop()
            shared = min(shared, closed.start)
        first = self.num_tokens
        if closed is not None and closed.start == shared:
            first = closed.first
        elif closed is not None:
            self._close(closed)
        self._open.append(_Branch(shared, self.num_tokens, first))
        return shared

    def _close(self, branch: _Branch) -> None:
        """Nothing more leaves where `branch` does, from the branch that is now the last one open."""
        above = self._open[-1]
        if branch.first < self.num_tokens:
            stop = above.row + branch.start - above.start
            self._prefixes.append(Prefix(above.row, stop, branch.first, self.num_tokens))

    def packed(self, device: torch.device, blocks: Sequence[Blocks | None]) -> PackedBatch:
        """The batch, once everything is added."""
        while len(self._open) > 1:
            self._close(self._open.pop())
        all_items = zip(self._items, self._starts, blocks, strict=True)
        new = [(item, start, own) for item, start, own in all_items if start < len(item.tokens)]
        lengths = [len(item.tokens) - start for item, start, _ in new]
        return PackedBatch(
            _to_device(np.concatenate([item.tokens[start:] for item, start, _ in new]), device),
            _to_device(np.concatenate([np.arange(start, len(item.tokens)) for item, start, _ in new]), device),
            adapter_segments([item.adapter for item, _, _ in new], lengths),
            self._rows,
            PackedCausal(lengths, self._prefixes, [_unless_causal(own, start) for _, start, own in new]),
        )


def _unless_causal(blocks: Blocks | None, start: int) -> Blocks | None:
    """The blocks from `start` on, where there is one of several tokens among them."""
    return None if blocks is None or (np.diff(blocks[start:]) > 0).all() else blocks[start:]


def _to_device(array: Int32Array | Int64Array, device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)


def adapter_segments(adapters: Sequence[Adapter | None], lengths: Sequence[int]) -> list[Segment]:
    """One segment per stretch of sequences with the same adapter."""
    segments, start = [], 0
    pairs = zip(adapters, lengths, strict=True)
    for _, stretch in groupby(pairs, key=lambda pair: id(pair[0])):
        members = list(stretch)
        stop = start + sum(length for _, length in members)
        segments.append(Segment(start, stop, members[0][0]))
        start = stop
    return segments


def micro_batches(items: Sequence[S], max_tokens: int, load: Callable[[S], float]) -> Iterator[list[S]]:
    """Cut `items`, whose families stand together, into batches of at most `max_tokens` computed tokens and a load of 1.

    Sequences that share the most go into the same batch. One that is more has a batch to itself, with what is no more
    than a beginning of it.

    Args:
        load: of an item, what it takes of a batch's work and memory beside its tokens'; 1 is all of it.
    """
    batch: list[S] = []
    layout, loaded = _SharedLayout(), 0.0
    for item in in_sharing_order(items):
        before = layout.num_tokens
        layout.add(item)
        loaded += load(item)
        if batch and (before < layout.num_tokens > max_tokens or loaded > 1):
            yield batch
            batch, layout, loaded = [], _SharedLayout(), load(item)
            layout.add(item)
        batch.append(item)
    if batch:
        yield batch


def in_sharing_order(items: Sequence[S]) -> Iterator[S]:
    """The items of each family, which stand together, such that what they share need be there once."""
    for _, members in groupby(items, key=lambda item: item.family):
        family = list(members)
        for place in sharing_order([item.tokens for item in family]):
            yield family[place]
