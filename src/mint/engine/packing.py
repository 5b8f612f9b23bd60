"""Many sequences, many adapters, one batch: concatenation instead of padding, shared beginnings once.

Shapes: T tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mint.engine.adapters import Adapter
from mint.engine.core import Int32Array, Int64Array
from mint.engine.prefixes import Node, common_prefix, forest, lexicographic
from mint.models.attention import AttentionPlan, PackedCausal, Prefix
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


def pack_shared(items: Sequence[S], device: torch.device) -> PackedBatch:
    """Pack `items`, of which those of a family and of an adapter stand together; what a family shares is there once."""
    packer = _SharedPacker(items)
    for _, members in groupby(range(len(items)), key=lambda place: items[place].family):
        family = list(members)
        for root in forest([items[place].tokens for place in family]):
            packer.add(root, family, above=[])
    return packer.packed(device)


class _SharedPacker:
    """Lays nodes out depth first, so that all tokens below a node follow it without a gap."""

    def __init__(self, items: Sequence[Sharable]) -> None:
        self._items = items
        self._tokens: list[Int32Array] = []
        self._positions: list[Int64Array] = []
        self._lengths: list[int] = []
        self._adapters: list[Adapter | None] = []
        self._prefixes: list[Prefix] = []
        self._rows: list[Int64Array] = [np.empty(0, np.int64)] * len(items)
        self._size = 0

    def add(self, node: Node, family: Sequence[int], above: list[Int64Array]) -> None:
        """Lay out a node and those below it; `above` has the rows of those above it, `family` the places of its
        items."""
        item = self._items[family[node.source]]
        start = self._size
        self._size += node.num_tokens
        self._tokens.append(item.tokens[node.start : node.stop])
        self._positions.append(np.arange(node.start, node.stop))
        self._lengths.append(node.num_tokens)
        self._adapters.append(item.adapter)
        path = [*above, np.arange(start, self._size)]
        for member in node.members:
            self._rows[family[member]] = np.concatenate(path)
        for child in node.children:
            self.add(child, family, path)
        if node.children:
            self._prefixes.append(Prefix(start, start + node.num_tokens, self._size))

    def packed(self, device: torch.device) -> PackedBatch:
        """The batch, once everything is added."""
        return PackedBatch(
            _to_device(np.concatenate(self._tokens), device),
            _to_device(np.concatenate(self._positions), device),
            adapter_segments(self._adapters, self._lengths),
            self._rows,
            PackedCausal(self._lengths, self._prefixes),
        )


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


def micro_batches(items: Sequence[S], max_tokens: int) -> Iterator[list[S]]:
    """Cut `items`, whose families stand together, into batches of at most `max_tokens` tokens that are computed.

    Sequences that share the most go into the same batch. A single longer sequence has a batch to itself.
    """
    batch: list[S] = []
    size = 0
    for item, shared in _with_shared(items):
        if batch and size + len(item.tokens) - shared > max_tokens:
            yield batch
            batch, size = [item], len(item.tokens)
        else:
            batch.append(item)
            size += len(item.tokens) - shared
    if batch:
        yield batch


def _with_shared(items: Sequence[S]) -> Iterator[tuple[S, int]]:
    """Each item and how many tokens it shares with the one before it, family by family."""
    for _, members in groupby(items, key=lambda item: item.family):
        family = list(members)
        ordered = [family[place] for place in lexicographic([item.tokens for item in family])]
        for before, item in zip([None, *ordered], ordered, strict=False):
            yield item, common_prefix(before.tokens, item.tokens) if before is not None else 0
