"""Keys and values of live samples, in blocks.

A sequence owns a list of blocks, its block table; token t lies in block t // block_size. Blocks are counted
by reference, so that samples of one prompt share the blocks the prompt fills.

Shapes: K key/value heads, D head size, B sequences, N blocks, S tokens per block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mint.models.attention import AttentionPlan
from mint.models.flash import Attend


class BlockAllocator:
    """Which blocks are free, and how many sequences hold each of the others."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free blocks, held once; the caller has seen that there are so many."""
        assert count <= len(self._free), "more blocks taken than are free"
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each; those without any are free again."""
        for block in blocks:
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)


class KVCache:
    """The memory itself: per layer, keys and values of shape (N, S, K, D)."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        # empty, not zeros: pages are not touched, and so not resident, before a sample needs them
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.block_size = block_size
        self.num_blocks = num_blocks

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store (T, K, D) at `slots` int64 (T,), where slot = block · S + offset."""
        for cache, new in ((self._keys[layer], key), (self._values[layer], value)):
            cache.flatten(0, 1).index_copy_(0, slots, new)

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Gather int64 (B, n) block tables: keys and values of shape (B, K, n·S, D)."""
        gathered = (cache[tables].flatten(1, 2) for cache in (self._keys[layer], self._values[layer]))
        key, value = (t.transpose(1, 2) for t in gathered)
        return key, value

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks before they are used, in all layers.

        A place that the mask hides still counts as 0 × its value, which a NaN or ∞ left there would survive.
        """
        index = torch.tensor(blocks, device=self._keys[0].device)
        for cache in (*self._keys, *self._values):
            cache.index_fill_(0, index, 0)

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block, in all layers."""
        for cache in (*self._keys, *self._values):
            cache[target].copy_(cache[source])


class PrefillPlan:
    """Attention of whole prompts that also stores their keys and values."""

    def __init__(self, cache: KVCache, slots: Tensor, causal: AttentionPlan) -> None:
        self._cache = cache
        self._slots = slots
        self._causal = causal

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attend) -> Tensor:
        """See `AttentionPlan`."""
        self._cache.write(layer, self._slots, key, value)
        return self._causal.attend(layer, query, key, value, how)


class DecodePlan:
    """Attention of one new token per sequence to all that its sequence has stored.

    Args:
        tables: int64 (B, n), padded with any block of the same sequence.
        lengths: int64 (B,), tokens of each sequence with the new one.
    """

    def __init__(self, cache: KVCache, tables: Tensor, lengths: Tensor) -> None:
        size = cache.block_size
        last = lengths - 1
        self._cache = cache
        self._tables = tables
        self._slots = tables.gather(1, (last // size)[:, None])[:, 0] * size + last % size
        self._behind = last[:, None] - torch.arange(tables.shape[1] * size, device=lengths.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attend) -> Tensor:
        """See `AttentionPlan`; there is one token per sequence."""
        self._cache.write(layer, self._slots, key, value)
        keys, values = self._cache.read(layer, self._tables)
        seen = self._behind >= 0 if how.window is None else (self._behind >= 0) & (self._behind < how.window)
        out = scaled_dot_product_attention(
            query[:, :, None],
            keys,
            values,
            attn_mask=seen[:, None, None, :],
            scale=how.scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        return out[:, :, 0]
