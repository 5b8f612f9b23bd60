"""Many sequences, many adapters, one batch: concatenation instead of padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mint.engine.adapters import Adapter
from mint.engine.core import Int32Array
from mint.models.attention import AttentionPlan, PackedCausal
from mint.models.lora import Segment


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


P = TypeVar("P", bound=Packable)


@dataclass(frozen=True)
class PackedBatch:
    """`tokens` and `positions` int64 (T,); `lengths` in packing order; `segments` cover 0 … T."""

    tokens: Tensor
    positions: Tensor
    lengths: list[int]
    segments: list[Segment]

    @property
    def plan(self) -> AttentionPlan:
        """Causal within each sequence."""
        return PackedCausal(self.lengths)


def packing_order(items: Sequence[P]) -> list[P]:
    """Adapters in order of first appearance, and within each equal lengths side by side."""
    place: dict[int, int] = {}
    for item in items:
        place.setdefault(id(item.adapter), len(place))
    return sorted(items, key=lambda item: (place[id(item.adapter)], len(item.tokens)))


def pack(items: Sequence[Packable], device: torch.device) -> PackedBatch:
    """Concatenate `items`, which are in packing order."""
    lengths = [len(item.tokens) for item in items]
    tokens = np.concatenate([item.tokens for item in items]).astype(np.int64)
    positions = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    return PackedBatch(
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(positions).to(device),
        lengths,
        adapter_segments([item.adapter for item in items], lengths),
    )


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


def micro_batches(items: Sequence[P], max_tokens: int) -> Iterator[list[P]]:
    """Cut a batch in packing order: no part has more than `max_tokens`, but for a single longer sequence."""
    part: list[P] = []
    size = 0
    for item in items:
        if part and size + len(item.tokens) > max_tokens:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item.tokens)
    if part:
        yield part
