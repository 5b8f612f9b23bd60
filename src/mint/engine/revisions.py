"""Adapter revisions in memory, for sampling: loaded on first use, the least recently used given up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from mint.engine.adapters import Adapter, load_adapter
from mint.engine.core import Revision
from mint.models.lora import LinearSite


class RevisionCache:
    """Revisions of at most `max_bytes` in sum; a sequence that is being sampled keeps its own reference."""

    def __init__(self, sites: Sequence[LinearSite], device: torch.device, max_bytes: int) -> None:
        self._sites = sites
        self._device = device
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()

    def get(self, revision: Revision) -> Adapter:
        """The revision's weights.

        Raises:
            BadRequestError: the files are missing or damaged, or are of another base model.
        """
        adapter = self._loaded.get(revision.key)
        if adapter is None:
            adapter = Adapter(*load_adapter(revision.directory, self._sites, self._device))
        self.put(revision.key, adapter)
        return adapter

    def put(self, key: str, adapter: Adapter) -> None:
        """Keep a revision, as the most recently used."""
        self._loaded[key] = adapter
        self._loaded.move_to_end(key)
        while self._num_bytes() > self._max_bytes:
            self._loaded.popitem(last=False)

    def _num_bytes(self) -> int:
        return sum(adapter.flat.nbytes for adapter in self._loaded.values())
