"""How much memory samples get where the settings leave it open."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config

from mint.config import EngineConfig
from mint.engine import kv_cache
from mint.engine.kv_cache import KVCache
from mint.errors import ModelLoadError

TOKEN_BYTES = 2 * 20 * 8 * 128 * 4


class FakeModel:
    """What the cache asks of a model; a token of it takes 160 KiB."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, context: int) -> None:
        self.config = Qwen3Config(
            num_hidden_layers=20, num_key_value_heads=8, head_dim=128, max_position_embeddings=context
        )


@pytest.mark.parametrize(
    ("context", "free_gib", "expected"),
    [
        (4096, 4, 4096),  # 640 MiB
        (4096, 2, (512 << 20) // TOKEN_BYTES),
        (512, 0, (512 << 20) // TOKEN_BYTES),
    ],
)
def test_one_sequence_of_the_whole_context_fits_where_there_is_memory(
    monkeypatch: pytest.MonkeyPatch, context: int, free_gib: int, expected: int
) -> None:
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda _device: free_gib << 30)
    cache = KVCache(FakeModel(context), EngineConfig())  # type: ignore[arg-type]
    assert cache.num_blocks == expected // cache.block_size


def test_a_very_long_context_is_not_provided_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda _device: 1 << 40)
    monkeypatch.setattr(kv_cache, "LONGEST", 4000)
    assert KVCache(FakeModel(1 << 20), EngineConfig()).num_blocks == 250  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1000, 1 << 60])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ModelLoadError, match="--kv-cache-gib"):
        KVCache(FakeModel(64), EngineConfig(kv_cache_bytes=size))  # type: ignore[arg-type]


def test_free_memory_is_some_of_the_machines() -> None:
    assert 0 < kv_cache._free_bytes(torch.device("cpu")) < 1 << 50
