"""Attention of a step of generation: some tokens of every sequence, to all that the sequence has stored before.

Most sequences bring one token, some bring a piece of their prompt. What several have in common (the blocks of one
prompt, under its samples) is read and multiplied once for all of them; what each sees beside that is merged in by its
log-sum-exp.

Shapes: T tokens of the step, B of them single, H query heads, K key/value heads, D head size, S tokens per block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import numpy as np
import torch
from torch import Tensor

from mint.engine.kv_cache import KVCache
from mint.models import flash
from mint.models.attention import Blocks, PackedCausal, merge
from mint.models.flash import Answer, Attend, Block
from mint.models.threads import WIDE

WORTH_SHARING = 512
"""Keys that need not be read again, for which it is worth to attend to a common beginning by itself."""

WASTE = 2.0
"""Single tokens whose tables are up to so much longer than the shortest run as one product, padded."""


@dataclass(frozen=True)
class Chunk:
    """Tokens start ≤ t < stop of a sequence that are to be computed, and the blocks for all up to stop.

    Where it is more than one token, all before `start` lie in full blocks. Its first `whole` tokens see each other all,
    and are then computed together, as far as they were not before.
    """

    start: int
    stop: int
    blocks: Sequence[int]
    whole: int = 0

    @property
    def is_single(self) -> bool:
        """Whether it is one token, as of a sequence that is past its prompt."""
        return self.stop - self.start == 1

    @property
    def sight(self) -> Blocks | None:
        """See `mint.models.attention.Blocks`; None is causal."""
        if self.start >= self.whole:
            return None
        return np.maximum(np.arange(self.start, self.stop) - (self.whole - 1), 0).astype(np.int32)


@dataclass(frozen=True)
class Common:
    """Rows of the single tokens, or of the pieces, and full blocks that all of them see all of."""

    rows: slice
    blocks: Sequence[int]


@dataclass(frozen=True)
class Table:
    """What is left for each of some single tokens to see.

    Attributes:
        rows: int64 (n,), of the batch.
        blocks: int64 (n, m), padded with any block.
        mask: (n, 1, m · S), see `flash.forward_masked`.
    """

    rows: Tensor
    blocks: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Layout:
    """How the single tokens of a step attend, with or without a window."""

    common: Sequence[Common]
    tables: Sequence[Table]


class PagedAttention:
    """An `AttentionPlan` for the chunks of a step.

    Args:
        chunks: the single tokens first, those of a common beginning next to each other.
    """

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._singles = list(takewhile(lambda chunk: chunk.is_single, chunks))
        self._pieces = chunks[len(self._singles) :]
        assert not any(piece.is_single for piece in self._pieces), "single tokens come first"
        lengths = [piece.stop - piece.start for piece in self._pieces]
        self._causal = PackedCausal(lengths, blocks=[piece.sight for piece in self._pieces])
        self._piece_rows = list(_rows_of(self._pieces))
        self._contexts = [common for common in self._contexts_of_pieces() if common.blocks]
        self._slots = torch.from_numpy(np.concatenate([self._slots_of(chunk) for chunk in chunks])).to(device)
        self._layouts: dict[int | None, Layout] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attend) -> Tensor:
        """See `AttentionPlan`."""
        self._cache.write(layer, self._slots, key, value)
        with WIDE:
            return self._attend(layer, Block(query, key, value), how)

    def _attend(self, layer: int, block: Block, how: Attend) -> Tensor:
        query, key, value = block
        count = len(self._singles)
        if not self._pieces:
            return self._attend_singles(layer, query, how)
        out = torch.empty_like(query)
        if count:
            out[:count] = self._attend_singles(layer, query[:count], how)
        out[count:] = self._attend_pieces(layer, Block(query[count:], key[count:], value[count:]), how)
        return out

    # --- single tokens --------------------------------------------------------------------------------------

    def _attend_singles(self, layer: int, query: Tensor, how: Attend) -> Tensor:
        """(B, H, D) → (B, H, D)."""
        layout = self._layout(how.window)
        out = torch.empty_like(query, dtype=torch.float32)
        lse = torch.empty_like(out[..., 0])
        for table in layout.tables:
            key, value = self._cache.read(layer, table.blocks)
            whole = len(table.rows) == len(query)
            own = query if whole else query[table.rows]
            answer = flash.forward_masked(Block(own[:, None], key, value), table.mask, how.scale)
            if whole:
                out, lse = answer.out[:, 0].float(), answer.lse[:, 0]
            else:
                out[table.rows], lse[table.rows] = answer.out[:, 0].float(), answer.lse[:, 0]
        for common in layout.common:
            self._merge_common(layer, common, query, Answer(out, lse), how)
        return out.to(query.dtype)

    def _merge_common(self, layer: int, common: Common, query: Tensor, answer: Answer, how: Attend) -> None:
        """Take what `common.rows` see of common blocks into their answer, in place."""
        key, value = self._cache.read(layer, self._tensor([common.blocks]))
        block = Block(query[None, common.rows], key, value)
        other = flash.forward(block, how._replace(causal=False, window=None))
        merge(answer.out[common.rows], answer.lse[common.rows], other.out[0], other.lse[0])

    def _layout(self, window: int | None) -> Layout:
        if window is not None and all(chunk.stop <= window for chunk in self._singles):
            window = None
        if window not in self._layouts:
            self._layouts[window] = self._lay_out(window)
        return self._layouts[window]

    def _lay_out(self, window: int | None) -> Layout:
        """Within a window nothing is shared: it ends somewhere else for everyone."""
        size = self._cache.block_size
        common: list[Common] = []
        if window is None:
            starts = [0] * len(self._singles)
            for shared in _common_beginnings([chunk.blocks for chunk in self._singles], size):
                common.append(shared)
                for row in range(shared.rows.start, shared.rows.stop):
                    starts[row] += len(shared.blocks)
        else:
            starts = [max(0, chunk.stop - window) // size for chunk in self._singles]
        widths = [-(-chunk.stop // size) - start for chunk, start in zip(self._singles, starts, strict=True)]
        tables = [self._table(rows, starts, window) for rows in _of_like_width(widths)]
        return Layout(common, tables)

    def _table(self, rows: Sequence[int], starts: Sequence[int], window: int | None) -> Table:
        """The blocks of these rows from `starts` on."""
        size = self._cache.block_size
        blocks = [self._singles[row].blocks[starts[row] : -(-self._singles[row].stop // size)] for row in rows]
        width = max(map(len, blocks))
        padded = [[*own, *[own[0]] * (width - len(own))] for own in blocks]
        last = self._tensor([self._singles[row].stop - 1 - starts[row] * size for row in rows])
        behind = last[:, None, None] - torch.arange(width * size, device=self._device)
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return Table(self._tensor(rows), self._tensor(padded), flash.additive(seen, self._cache.dtype))

    # --- pieces of prompts ----------------------------------------------------------------------------------

    def _attend_pieces(self, layer: int, block: Block, how: Attend) -> Tensor:
        window = how.window
        if window is not None and any(piece.stop > window for piece in self._pieces if piece.start):
            return self._attend_in_window(layer, block, how.scale, window)
        own = self._causal.forward(block, how)
        answer = Answer(own.out.float(), own.lse)
        for context in self._contexts:
            self._merge_common(layer, context, block.query, answer, how)
        return answer.out.to(block.query.dtype)

    def _attend_in_window(self, layer: int, block: Block, scale: float, window: int) -> Tensor:
        """Piece by piece, with a mask: what is stored has left the window of some of its tokens."""
        size = self._cache.block_size
        out = torch.empty_like(block.query)
        for piece, rows in zip(self._pieces, self._piece_rows, strict=True):
            first = max(0, piece.start - window) // size
            key, value = self._cache.read(layer, self._tensor([piece.blocks[first : -(-piece.stop // size)]]))
            position = torch.arange(piece.start, piece.stop, device=self._device)
            behind = position[:, None] - torch.arange(first * size, first * size + key.shape[1], device=self._device)
            mask = flash.additive((behind >= 0) & (behind < window), key.dtype)
            out[rows] = flash.forward_masked(Block(block.query[None, rows], key, value), mask[None], scale).out[0]
        return out

    def _contexts_of_pieces(self) -> Iterator[Common]:
        """What was stored before each piece; neighbours that see the same blocks see them together."""
        size = self._cache.block_size
        places = zip(self._pieces, self._piece_rows, strict=True)
        for blocks, same in groupby(places, key=lambda place: list(place[0].blocks[: place[0].start // size])):
            rows = [rows for _, rows in same]
            yield Common(slice(rows[0].start, rows[-1].stop), blocks)

    # --- helpers --------------------------------------------------------------------------------------------

    def _slots_of(self, chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        position = np.arange(chunk.start, chunk.stop)
        size = self._cache.block_size
        return np.asarray(chunk.blocks, np.int64)[position // size] * size + position % size

    def _tensor(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def _rows_of(pieces: Sequence[Chunk]) -> Iterator[slice]:
    """Where each lies among the pieces."""
    start = 0
    for piece in pieces:
        stop = start + piece.stop - piece.start
        yield slice(start, stop)
        start = stop


def _common_beginnings(tables: Sequence[Sequence[int]], size: int, first: int = 0, depth: int = 0) -> Iterator[Common]:
    """Where sorted tables begin alike, from block `depth` on, and it is worth to know; the outer ones first.

    Args:
        size: tokens per block.
        first: the row of the first table.
    """
    if len(tables) < 2:
        return
    shared = _num_alike(tables[0], tables[-1])
    if (len(tables) - 1) * (shared - depth) * size >= WORTH_SHARING:
        yield Common(slice(first, first + len(tables)), tables[0][depth:shared])
        depth = shared
    for _, alike in groupby(tables, key=lambda table: table[shared : shared + 1]):
        group = list(alike)
        if len(group) < len(tables):
            yield from _common_beginnings(group, size, first, depth)
        first += len(group)


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Of sorted tables the first and the last are the least alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _of_like_width(widths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in groups, in each of which the widest is no more than `WASTE` times the narrowest."""
    group: list[int] = []
    for row in sorted(range(len(widths)), key=widths.__getitem__):
        if group and widths[row] > WASTE * widths[group[0]]:
            yield sorted(group)
            group = []
        group.append(row)
    if group:
        yield sorted(group)
