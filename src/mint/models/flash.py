"""Attention of blocks of queries to blocks of keys that also returns the log-sum-exp, so that blocks can be merged.

torch computes it inside its fused attention and has no public function that returns it, so the private operators are
named here and nowhere else; a test holds them to a plain softmax.

Shapes: C independent blocks, n queries, m keys, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

WINDOW_QUERIES = 256
"""Queries that attend within a sliding window at a time; as many as the window is wide, if that is wider."""

HALF_TYPES = (torch.bfloat16, torch.float16)
"""What the fused operator of CUDA takes."""


class Block(NamedTuple):
    """Queries (C, n, H, D), keys (C, m, K, D) and values (C, m, K, D)."""

    query: Tensor
    key: Tensor
    value: Tensor


class Answer(NamedTuple):
    """Outputs (C, n, H, D) and the log-sum-exp of the scaled scores, float32 (C, n, H)."""

    out: Tensor
    lse: Tensor


class Attend(NamedTuple):
    """What a query sees of its block: all, or (`causal`) what is not behind it, of that the last `window`."""

    scale: float
    causal: bool = True
    window: int | None = None

    def narrow(self, keys: int) -> int | None:
        """The window, where it is narrower than the block."""
        return self.window if self.causal and self.window is not None and keys > self.window else None


class Ragged(NamedTuple):
    """Stretches of any length: where each starts and the last one ends, int32 (C + 1,), and the longest's length."""

    borders: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Ragged:
        """Stretches of these lengths."""
        borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(borders, max(lengths))


def is_ragged(query: Tensor) -> bool:
    """Whether stretches of different lengths cost one call: CUDA's fused operator takes them as they are."""
    return query.is_cuda and query.dtype in HALF_TYPES


def forward(block: Block, how: Attend) -> Answer:
    """Softmax attention within each block."""
    if is_ragged(block.query):
        count = len(block.query)
        sides = [Ragged.of([t.shape[1]] * count, t.device) for t in block[:2]]
        flat = ragged_forward(Block(*(t.flatten(0, 1) for t in block)), sides[0], sides[1], how)
        return Answer(*(t.view(count, -1, *t.shape[1:]) for t in flat))
    window = how.narrow(block.key.shape[1])
    if window is None:
        return _forward(block, how)
    pieces = [
        forward_masked(Block(block.query[:, q], block.key[:, k], block.value[:, k]), mask, how.scale)
        for q, k, mask in _windows(block, window)
    ]
    return Answer(*(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)))


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that `forward_masked` adds to scores: 0 where `seen`, −∞ elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def forward_masked(block: Block, mask: Tensor, scale: float) -> Answer:
    """Softmax attention within each block under an additive mask (C or 1, n, m), which hides no row's every key.

    On CUDA in float32, whatever the block is: scores that are rounded to bfloat16 would not be the trainer's.
    """
    if block.query.is_cuda:
        block = Block(*(t.float() for t in block))
    return _forward(block, Attend(scale, causal=False), mask[:, None])


def _forward(block: Block, how: Attend, mask: Tensor | None = None) -> Answer:
    """`mask` (C or 1, 1, n, m)."""
    if block.query.is_cuda:
        return _plain_forward(block, how, mask)
    q, k, v = (t.transpose(1, 2) for t in block)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, how.causal, attn_mask=mask, scale=how.scale
    )
    return Answer(out.transpose(1, 2), lse.transpose(1, 2))


def backward(grad: Tensor, block: Block, answer: Answer, how: Attend) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    `grad` (C, n, H, D) is that of the outputs. Where `answer` is over more keys than the block's, these are its share.
    """
    if is_ragged(block.query):
        count = len(block.query)
        sides = [Ragged.of([t.shape[1]] * count, t.device) for t in block[:2]]
        flat_block, flat_answer = Block(*(t.flatten(0, 1) for t in block)), Answer(*(t.flatten(0, 1) for t in answer))
        flat = ragged_backward(grad.flatten(0, 1), flat_block, flat_answer, (sides[0], sides[1]), how)
        grad_q, grad_k, grad_v = (t.view(count, -1, *t.shape[1:]) for t in flat)
        return grad_q, grad_k, grad_v
    window = how.narrow(block.key.shape[1])
    if window is None:
        return _backward(grad, block, answer, how)
    grads = torch.zeros_like(block.query), torch.zeros_like(block.key), torch.zeros_like(block.value)
    for q, k, mask in _windows(block, window):
        piece = Block(block.query[:, q], block.key[:, k], block.value[:, k])
        own = Answer(answer.out[:, q], answer.lse[:, q])
        parts = _backward(grad[:, q], piece, own, Attend(how.scale, causal=False), mask[:, None])
        for whole, rows, part in zip(grads, (q, k, k), parts, strict=True):
            whole[:, rows] += part
    return grads


def backward_masked(
    grad: Tensor, block: Block, answer: Answer, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` of `forward_masked`, in the type that it takes."""
    dtype = block.query.dtype
    if block.query.is_cuda:
        grad, block, answer = grad.float(), Block(*(t.float() for t in block)), Answer(answer.out.float(), answer.lse)
    grad_q, grad_k, grad_v = _backward(grad, block, answer, Attend(scale, causal=False), mask[:, None])
    return grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype)


def _backward(
    grad: Tensor, block: Block, answer: Answer, how: Attend, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    if block.query.is_cuda:
        return _plain_backward(grad, block, answer, how, mask)
    g, q, k, v, o, s = (t.transpose(1, 2) for t in (grad, *block, *answer))
    grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g, q, k, v, o, s, 0.0, how.causal, attn_mask=mask, scale=how.scale
    )
    return grad_q.transpose(1, 2), grad_k.transpose(1, 2), grad_v.transpose(1, 2)


def ragged_forward(block: Block, queries: Ragged, keys: Ragged, how: Attend) -> Answer:
    """`forward` of stretches of any length without the axis C, where `is_ragged`."""
    left, right = _sides(how, keys)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *block, queries.borders, keys.borders, queries.longest, keys.longest, 0.0, how.causal, False,
        scale=how.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return Answer(out, lse.T.contiguous())


def ragged_backward(
    grad: Tensor, block: Block, answer: Answer, sides: tuple[Ragged, Ragged], how: Attend
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` of what `ragged_forward` takes; `sides` are the queries' stretches and the keys'."""
    queries, keys = sides
    left, right = _sides(how, keys)
    seed = torch.zeros(2, dtype=torch.uint64, device=grad.device)  # of a dropout that there is not
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), *block, answer.out, answer.lse.T.contiguous(), queries.borders, keys.borders,
        queries.longest, keys.longest, 0.0, how.causal, seed, grad.new_empty(0),
        scale=how.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return grads


def _sides(how: Attend, keys: Ragged) -> tuple[int, int]:
    """How far a query sees to both sides; −1 is without limit."""
    window = how.narrow(keys.longest)
    return (-1, -1) if window is None else (window - 1, 0)


def _windows(block: Block, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Some queries at a time, the keys that any of them sees, and the mask (1, n, m) between these.

    So neither masks nor scores grow with the square of the length.
    """
    length, step = block.query.shape[1], max(window, WINDOW_QUERIES)
    for start in range(0, length, step):
        queries = slice(start, min(start + step, length))
        keys = slice(max(0, start - window + 1), queries.stop)
        size = queries.stop - start, queries.stop - keys.start
        yield queries, keys, _band(size, window, block.query.dtype, block.query.device)


@lru_cache(maxsize=4)
def _band(size: tuple[int, int], window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask (1, n, m) of the last n of m tokens, each of which sees itself and the window − 1 before it."""
    queries, keys = size
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return additive((behind >= 0) & (behind < window), dtype)[None]


# --- without a fused operator: float32 on CUDA --------------------------------------------------------------


def _by_key_head(t: Tensor, heads: int) -> Tensor:
    """(C, n, H, …) → (C, K, H/K, n, …)."""
    split = t.view(*t.shape[:2], heads, t.shape[2] // heads, *t.shape[3:])
    return split.movedim(1, 3)


def _scores(block: Block, how: Attend, mask: Tensor | None) -> Tensor:
    """(C, K, H/K, n, m), scaled and masked."""
    key = block.key.permute(0, 2, 3, 1)[:, :, None]
    scores = _by_key_head(block.query, block.key.shape[2]) @ key * how.scale
    if mask is not None:
        scores += mask[:, None]
    elif how.causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device).triu_(1)
        scores.masked_fill_(hidden, -torch.inf)
    return scores


def _plain_forward(block: Block, how: Attend, mask: Tensor | None) -> Answer:
    scores = _scores(block, how, mask)
    out = scores.softmax(dim=-1) @ block.value.transpose(1, 2)[:, :, None]
    return Answer(out.movedim(3, 1).flatten(2, 3), scores.logsumexp(dim=-1).movedim(3, 1).flatten(2, 3))


def _plain_backward(
    grad: Tensor, block: Block, answer: Answer, how: Attend, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    heads = block.key.shape[2]
    g, q, o, s = (_by_key_head(t, heads) for t in (grad, block.query, *answer))
    p = (_scores(block, how, mask) - s[..., None]).exp()
    along = (g * o).sum(dim=-1, keepdim=True)
    grad_scores = p * (g @ block.value.permute(0, 2, 3, 1)[:, :, None] - along) * how.scale
    grad_q = (grad_scores @ block.key.transpose(1, 2)[:, :, None]).movedim(3, 1).flatten(2, 3)
    grad_k, grad_v = (grad_scores.mT @ q).sum(dim=2), (p.mT @ g).sum(dim=2)
    return grad_q, grad_k.transpose(1, 2), grad_v.transpose(1, 2)
