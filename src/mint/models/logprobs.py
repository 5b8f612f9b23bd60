"""The loss head: log-probabilities of given targets, and nothing of vocabulary size that outlives a chunk.

log p(target) = logit[target] − logsumexp(logits), and backward d logit = g · (onehot(target) − softmax(logits)). The
logits of a batch of several chunks are computed again for the backward pass; those of a single chunk are kept.

Shapes: T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mint.models.lora import LowRankPart, Segment, low_rank_parts

CHUNK_ELEMENTS = 16 << 20
"""Logits computed at a time: 64 MiB in float32."""


class UnembeddingHead:
    """The last linear layer, with the adapters of a batch, as logits or as log-probabilities of targets."""

    def __init__(self, linear: nn.Linear, site: int) -> None:
        self._linear = linear
        self._site = site
        self._anchor = torch.zeros((), requires_grad=True)

    def logits(self, hidden: Tensor, segments: Sequence[Segment]) -> Tensor:
        """(T, E) → float32 (T, V). No gradient: for sampling."""
        with torch.no_grad():
            return _chunk_logits(hidden, self._linear, low_rank_parts(segments, self._site))[0]

    def target_logprobs(self, hidden: Tensor, targets: Tensor, segments: Sequence[Segment]) -> Tensor:
        """(T, E) and int64 (T,) → float32 (T,), with gradients to `hidden` and to the adapters' factors."""
        parts = low_rank_parts(segments, self._site)
        # a head that is adapted has gradients to give also where nothing below it has
        anchor = self._anchor if parts else None
        result: Tensor = _TargetLogprobs.apply(hidden, targets, self._linear, parts, anchor)  # type: ignore[no-untyped-call]
        return result


def _chunk_logits(hidden: Tensor, linear: nn.Linear, parts: Sequence[LowRankPart]) -> tuple[Tensor, list[Tensor]]:
    """Logits of some rows, float32, and each part's (n, r) product."""
    logits = nn.functional.linear(hidden, linear.weight, linear.bias)
    projected = [part.add_forward(hidden, logits) for part in parts]
    return logits.float(), projected


def _chunks(rows: int, vocab: int, parts: Sequence[LowRankPart]) -> Iterator[tuple[slice, list[LowRankPart]]]:
    """Cut rows so that a chunk's logits stay within CHUNK_ELEMENTS; parts are cut and shifted to match."""
    step = max(1, CHUNK_ELEMENTS // vocab)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        inside = []
        for part in parts:
            first, last = max(part.rows.start, start), min(part.rows.stop, stop)
            if first < last:
                cut, whole = slice(first - start, last - start), last - first == stop - start
                inside.append(LowRankPart(cut, part.weights, part.scale, whole))
        yield slice(start, stop), inside


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a batch with their logits, and each low-rank part's (n, r) product."""

    rows: slice
    parts: list[LowRankPart]
    logits: Tensor
    projected: list[Tensor]


def _compute(hidden: Tensor, linear: nn.Linear, parts: Sequence[LowRankPart]) -> Iterator[_Chunk]:
    """The logits of all rows, a chunk at a time."""
    for rows, inside in _chunks(len(hidden), linear.out_features, parts):
        yield _Chunk(rows, inside, *_chunk_logits(hidden[rows], linear, inside))


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        linear: nn.Linear,
        parts: list[LowRankPart],
        anchor: Tensor | None,  # noqa: ARG004  # see ActiveSegments
    ) -> Tensor:
        normalizer = hidden.new_empty(len(hidden), dtype=torch.float32)
        chosen = torch.empty_like(normalizer)
        kept = None
        for chunk in _compute(hidden, linear, parts):
            torch.logsumexp(chunk.logits, dim=1, out=normalizer[chunk.rows])
            chosen[chunk.rows] = chunk.logits.gather(1, targets[chunk.rows, None])[:, 0]
            kept = chunk if chunk.rows == slice(0, len(hidden)) and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, targets, normalizer)
        ctx.linear, ctx.parts, ctx.kept = linear, parts, kept
        return chosen - normalizer

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, targets, normalizer = ctx.saved_tensors
        linear: nn.Linear = ctx.linear
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk in (ctx.kept,) if ctx.kept is not None else _compute(hidden, linear, ctx.parts):
            g = grad[chunk.rows, None]
            # in place: a graph of the engine's runs backward once
            grad_logits = chunk.logits.sub_(normalizer[chunk.rows, None]).exp_().mul_(-g)
            grad_logits = grad_logits.scatter_add_(1, targets[chunk.rows, None], g).to(linear.weight.dtype)
            chunk_grad = None
            if grad_hidden is not None:
                chunk_grad = torch.mm(grad_logits, linear.weight, out=grad_hidden[chunk.rows])
            for part, xa in zip(chunk.parts, chunk.projected, strict=True):
                part.add_backward(hidden[chunk.rows], xa, grad_logits, chunk_grad)
        return grad_hidden, None, None, None, None
