"""Attention to what is stored in blocks, against plain attention to the same keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen3Config

from mint.config import EngineConfig
from mint.engine import paged_attention
from mint.engine.kv_cache import KVCache
from mint.engine.paged_attention import Chunk, PagedAttention
from mint.models.flash import Attend

SIZE, HEADS, KEY_HEADS, WIDTH, NUM_BLOCKS = 4, 4, 2, 16, 64
SCALE = 0.3
LAYER = 1


class FakeModel:
    """What the cache asks of a model."""

    config = Qwen3Config(
        num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=WIDTH, hidden_size=64
    )
    dtype = torch.float32
    device = torch.device("cpu")


class Stored:
    """A cache whose every token has a random key and value, also where nobody ever wrote."""

    def __init__(self) -> None:
        token_bytes = 2 * 2 * KEY_HEADS * WIDTH * 4
        self.cache = KVCache(
            FakeModel(), EngineConfig(kv_block_size=SIZE, kv_cache_bytes=NUM_BLOCKS * SIZE * token_bytes)
        )
        self.cache._memory.normal_(generator=torch.Generator().manual_seed(0))

    def expected(self, chunk: Chunk, query: Tensor, window: int | None) -> Tensor:
        """(n, H, D): softmax over all keys of the sequence that a token may see, in float64."""
        position = torch.arange(chunk.stop)
        slots = torch.tensor(chunk.blocks)[position // SIZE] * SIZE + position % SIZE
        key, value = self.cache._memory[LAYER].flatten(0, 1)[slots].double().unbind(1)
        key, value = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1) for t in (key, value))
        behind = torch.arange(chunk.start, chunk.stop)[:, None] - position
        seen = (behind >= 0) & (behind < (window or chunk.stop))
        scores = torch.einsum("nhd,mhd->hnm", query.double(), key) * SCALE
        return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value).float()


def check(chunks: Sequence[Chunk], windows: Sequence[int | None] = (None,), seed: int = 0) -> PagedAttention:
    """One plan for layers of all these windows, as in a model that has both kinds of layers."""
    stored = Stored()
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(chunk.stop - chunk.start for chunk in chunks)
    plan = PagedAttention(stored.cache, chunks, torch.device("cpu"))
    for window in windows:
        query = torch.randn(tokens, HEADS, WIDTH, generator=generator)
        key, value = torch.randn(2, tokens, KEY_HEADS, WIDTH, generator=generator)
        ours = plan.attend(LAYER, query, key, value, Attend(SCALE, window=window))
        row = 0
        for chunk in chunks:
            rows = slice(row, row + chunk.stop - chunk.start)
            torch.testing.assert_close(ours[rows], stored.expected(chunk, query[rows], window), rtol=0, atol=2e-6)
            row = rows.stop
    return plan


def ordered(chunks: Sequence[Chunk]) -> list[Chunk]:
    return sorted(chunks, key=lambda chunk: (not chunk.is_single, list(chunk.blocks)))


def forked(generator: np.random.Generator, count: int) -> list[Chunk]:
    """Sequences that grow as a tree: each begins like some other one, up to a block's end, and goes on by itself."""
    fresh = list(generator.permutation(NUM_BLOCKS))
    chunks: list[Chunk] = []
    for _ in range(count):
        beginning: list[int] = []
        if chunks and generator.random() < 0.8:
            other = chunks[generator.integers(len(chunks))]
            full = other.start // SIZE
            beginning = list(other.blocks[: generator.integers(0, full + 1)])
        own = [int(fresh.pop()) for _ in range(generator.integers(1, 4))]
        blocks = [*beginning, *own]
        if generator.random() < 0.6:
            stop = (len(blocks) - 1) * SIZE + int(generator.integers(1, SIZE + 1))
            chunks.append(Chunk(stop - 1, stop, blocks))
        else:
            start = int(generator.integers(len(beginning), len(blocks))) * SIZE
            stop = (len(blocks) - 1) * SIZE + int(generator.integers(1, SIZE + 1))
            chunks.append(Chunk(start, stop, blocks))
    return ordered(chunks)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 14),
    worth=st.sampled_from([1, 8, 512]),
    windows=st.lists(st.sampled_from([None, 1, 3, 4, 5, 9, 100]), min_size=1, max_size=2),
)
def test_any_step_equals_plain_attention(seed: int, count: int, worth: int, windows: list[int | None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged_attention, "WORTH_SHARING", worth)
        check(forked(np.random.default_rng(seed), count), windows, seed)


def test_beginnings_within_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """All share two blocks, half of them two more, and of these two a fifth."""
    monkeypatch.setattr(paged_attention, "WORTH_SHARING", 4)
    tables = [[0, 1, 2, 3, 4, 10], [0, 1, 2, 3, 4, 11], [0, 1, 2, 3, 12], [0, 1, 20], [0, 1, 21, 22]]
    plan = check([Chunk(4 * len(table) - 2, 4 * len(table) - 1, table) for table in tables])
    layout = plan._layouts[None]
    assert [(c.rows.start, c.rows.stop, list(c.blocks)) for c in layout.common] == [
        (0, 5, [0, 1]),
        (0, 3, [2, 3]),
        (0, 2, [4]),
    ]
    assert sorted(len(table.blocks[0]) for table in layout.tables) == [2]


def test_what_is_not_worth_it_is_read_by_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_attention, "WORTH_SHARING", 9)
    chunks = [Chunk(10, 11, [0, 1, 2]), Chunk(10, 11, [0, 1, 3])]
    assert not check(chunks)._layouts[None].common
    monkeypatch.setattr(paged_attention, "WORTH_SHARING", 8)
    assert check(chunks)._layouts[None].common


def test_tokens_of_very_different_reach_do_not_pad_each_other() -> None:
    chunks = [Chunk(0, 1, [0]), Chunk(0, 1, [1]), Chunk(79, 80, list(range(10, 30)))]
    tables = check(chunks)._layouts[None].tables
    assert [table.blocks.shape for table in tables] == [(2, 1), (1, 20)]


@pytest.mark.parametrize("window", [None, 6, 30])
def test_pieces_that_see_the_same_see_it_together(window: int | None) -> None:
    """Three pieces behind one beginning, one behind another, one behind none."""
    common = [0, 1, 2, 3]
    chunks = [Chunk(16, 16 + n, [*common, 10 + n, 20 + n]) for n in (3, 5, 8)]
    chunks += [Chunk(8, 14, [4, 5, 6, 7]), Chunk(0, 7, [8, 9])]
    check(ordered(chunks), [window, None])
    assert [len(c.blocks) for c in PagedAttention(Stored().cache, ordered(chunks), torch.device("cpu"))._contexts] == [
        4,
        2,
    ]
