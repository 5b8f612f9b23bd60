"""Keys and values of live samples, in blocks.

A sequence owns a list of blocks, its block table; token t lies in block t // block_size.

Shapes: L layers, N blocks, S tokens per block, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

from mint.config import EngineConfig
from mint.errors import ModelLoadError
from mint.models.causal_lm import CausalLM

DEFAULT_BYTES = 512 << 20
LONGEST = 32 << 10
"""Tokens of one sequence that there is room for unless the settings say otherwise, memory and model permitting."""

OPTION = "`mint serve --kv-cache-gib` says how much there is to be"


class KVCache:
    """The memory itself, one tensor (L, N, S, 2, K, D): a token's key and value lie side by side.

    Raises:
        ModelLoadError: its size is less than a block, or more than there is.
    """

    def __init__(self, model: CausalLM, config: EngineConfig) -> None:
        shape = model.config.get_text_config(decoder=True)
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        token_bytes = 2 * shape.num_hidden_layers * heads * head_dim * model.dtype.itemsize
        self.dtype = model.dtype
        self.block_size = config.kv_block_size
        block_bytes = token_bytes * config.kv_block_size
        size = config.kv_cache_bytes
        if size is None:
            longest = min(model.config.max_position_embeddings, LONGEST)
            size = _default_bytes(-(-longest // self.block_size) * block_bytes, model.device)
        self.num_blocks: int = size // block_bytes
        if self.num_blocks < 1:
            raise ModelLoadError(f"{size} bytes hold no keys and values: a block takes {block_bytes}; {OPTION}")
        layout = (shape.num_hidden_layers, self.num_blocks, self.block_size, 2, heads, head_dim)
        try:
            # empty, not zeros: pages are not touched, and so not resident, before a sample needs them
            self._memory = torch.empty(layout, dtype=model.dtype, device=model.device)
        except RuntimeError as error:
            raise ModelLoadError(f"{model.device} has no {size} bytes for keys and values; {OPTION}") from error

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store (T, K, D) at `slots` int64 (T,), where slot = block · S + offset."""
        self._memory[layer].flatten(0, 1).index_copy_(0, slots, torch.stack((key, value), dim=1))

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Gather int64 (B, n) block tables: keys and values of shape (B, n·S, K, D)."""
        gathered = self._memory[layer].index_select(0, tables.flatten())
        keys_and_values = gathered.view(len(tables), -1, *gathered.shape[2:])
        key, value = keys_and_values.unbind(dim=2)
        return key, value

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks before they are used, in all layers.

        A place that a mask hides still counts as 0 × its value, which a NaN or ∞ left there would survive.
        """
        for block in blocks:  # which is faster than an index of them all
            self._memory[:, block].zero_()

    def copy_block(self, source: int, targets: Sequence[int]) -> None:
        """Copy one block to others, in all layers."""
        self._memory[:, torch.tensor(targets, device=self._memory.device)] = self._memory[:, source : source + 1]


def _default_bytes(sequence_bytes: int, device: torch.device) -> int:
    """Room for one long sequence, where that leaves most of the memory free."""
    return max(DEFAULT_BYTES, sequence_bytes) if sequence_bytes <= _free_bytes(device) // 4 else DEFAULT_BYTES


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
