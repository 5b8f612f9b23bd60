"""Buffers of runs in training, several of a size in one piece of memory.

Adapters of one shape that lie side by side can be read, and their gradients written, as one tensor with an axis more:
what many small runs have in common is then one product, without copies.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

SLAB_BYTES = 32 << 20
"""Of a piece of memory, of which weights have one and gradients another. No more is taken in advance for each size."""

SLAB_BUFFERS = 64


@dataclass(eq=False)
class Buffers:
    """A run's weights, of any content at first, and its gradients, zero at first; float32 (size,).

    The memory is free again once nobody refers to this object.
    """

    weights: Tensor
    gradients: Tensor


@dataclass(eq=False)
class Slab:
    """Room for the buffers of several runs, float32 (places, size) each."""

    weights: Tensor
    gradients: Tensor
    free: list[int] = field(default_factory=list)


class BufferPool:
    """Where the runs on one device have their buffers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slabs: defaultdict[int, list[Slab]] = defaultdict(list)

    def take(self, size: int) -> Buffers:
        """The first free place."""
        slab = next((slab for slab in self._slabs[size] if slab.free), None) or self._grow(size)
        place = min(slab.free)
        slab.free.remove(place)
        buffers = Buffers(slab.weights[place], slab.gradients[place].zero_())
        weakref.finalize(buffers, self._give_back, size, slab, place).atexit = False
        return buffers

    def _grow(self, size: int) -> Slab:
        places = max(1, min(SLAB_BUFFERS, SLAB_BYTES // (4 * size)))
        weights, gradients = (torch.empty(places, size, device=self._device) for _ in range(2))
        slab = Slab(weights, gradients, list(range(places)))
        self._slabs[size].append(slab)
        return slab

    def _give_back(self, size: int, slab: Slab, place: int) -> None:
        slab.free.append(place)
        if len(slab.free) == len(slab.weights):
            self._slabs[size].remove(slab)


_POOLS: dict[torch.device, BufferPool] = {}


def pool_of(device: torch.device) -> BufferPool:
    """The one pool of a device."""
    return _POOLS.setdefault(device, BufferPool(device))
