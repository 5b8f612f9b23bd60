"""Attention of blocks of queries to blocks of keys that also returns the log-sum-exp, so that blocks can be merged.

torch computes it inside its fused attention and has no public function that returns it, so the private operators are
named here and nowhere else; a test holds them to a plain softmax.

Shapes: C independent blocks, n queries, m keys, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

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


def forward(block: Block, how: Attend) -> Answer:
    """Softmax attention within each block."""
    query, key, value = block
    window = how.narrow(key.shape[1])
    if query.is_cuda and query.dtype in HALF_TYPES:
        left, right = (-1, -1) if window is None else (window - 1, 0)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, None, None, query.shape[1], key.shape[1], 0.0, how.causal, False,
            scale=how.scale, window_size_left=left, window_size_right=right,
        )  # fmt: skip
        return Answer(out, lse.transpose(1, 2))
    mask = None if window is None else _band(key.shape[1], window, query.dtype, query.device)
    if query.is_cuda:
        return _plain_forward(block, how, mask)
    q, k, v = (t.transpose(1, 2) for t in block)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, how.causal and mask is None, attn_mask=mask, scale=how.scale
    )
    return Answer(out.transpose(1, 2), lse.transpose(1, 2))


def backward(grad: Tensor, block: Block, answer: Answer, how: Attend) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    `grad` (C, n, H, D) is that of the outputs. Where `answer` is over more keys than the block's, these are its share.
    """
    query, key, value = block
    window = how.narrow(key.shape[1])
    if query.is_cuda and query.dtype in HALF_TYPES:
        left, right = (-1, -1) if window is None else (window - 1, 0)
        rng = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of a dropout that there is not
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad, query, key, value, answer.out, answer.lse.transpose(1, 2).contiguous(), None, None, query.shape[1],
            key.shape[1], 0.0, how.causal, rng, rng.new_empty(0),
            scale=how.scale, window_size_left=left, window_size_right=right,
        )  # fmt: skip
        return grads
    mask = None if window is None else _band(key.shape[1], window, query.dtype, query.device)
    if query.is_cuda:
        return _plain_backward(grad, block, answer, how, mask)
    g, q, k, v, o, s = (t.transpose(1, 2) for t in (grad, *block, *answer))
    grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g, q, k, v, o, s, 0.0, how.causal and mask is None, attn_mask=mask, scale=how.scale
    )
    return grad_q.transpose(1, 2), grad_k.transpose(1, 2), grad_v.transpose(1, 2)


@lru_cache(maxsize=2)
def _band(length: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive (n, n) mask: −∞ in front of a token, and from `window` tokens behind it on."""
    place = torch.arange(length, device=device)
    behind = place[:, None] - place
    hidden = (behind < 0) | (behind >= window)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


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
        scores += mask
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
