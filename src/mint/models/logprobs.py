"""The loss head: log-probabilities of given targets and their gradients, and nothing of vocabulary size that outlives
a chunk.

log p(target) = logit[target] − logsumexp(logits), and d logits = Σ g · (onehot(target) − softmax(logits)) for the
gradients g of a row's targets; both are computed in the place of the logits.

Where a token's gradient follows from that token's log-probability alone, a chunk goes forward and backward at once,
and its logits are computed once. Otherwise all chunks go forward, then all again, and backward.

Shapes: T tokens of the batch, P pairs of a token and a target, n rows of a chunk, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mint.models.low_rank import low_rank_parts
from mint.models.products import Product
from mint.models.segments import ActiveSegments, Segment, clip, select
from mint.models.threads import WIDE

CHUNK_ELEMENTS = 8 << 20
"""Logits computed at a time on a CPU: 32 MiB in float32, which its last cache holds."""

CUDA_CHUNK_ELEMENTS = 128 << 20
"""On CUDA, where a chunk must be large enough for the weights to be read seldom: 512 MiB."""

WORTH_SELECTING = 0.8
"""Rows whose gradients are all zero are left out of the backward pass when no more than this share of a chunk
remains."""


@dataclass(frozen=True)
class Pairs:
    """Which token is to predict what: `rows` int64 (P,), in ascending order, and `targets` int64 (P,).

    A token may have several targets, or none. `one_each` says that rows are 0 … T − 1, each once.
    """

    rows: Tensor
    targets: Tensor
    one_each: bool

    def within(self, start: int, stop: int) -> slice:
        """The pairs of the rows start ≤ row < stop."""
        if self.one_each:
            return slice(start, stop)
        bounds = torch.tensor([start, stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows, bounds).tolist()
        return slice(first, last)


class Objective(Protocol):
    """What is to be minimised, as a function of the log-probabilities.

    Attributes:
        per_token: a pair's gradient follows from its own log-probability.
    """

    per_token: bool

    def gradient(self, logprobs: Tensor, pairs: slice) -> Tensor:
        """Of the loss with respect to the log-probabilities of these pairs, all float32; all pairs unless
        `per_token`."""
        ...


@dataclass(frozen=True)
class Rows:
    """Hidden states (P, E) and the adapters they run through."""

    hidden: Tensor
    segments: Sequence[Segment]


class UnembeddingHead:
    """The last linear layer, with the adapters of a batch, as logits or as log-probabilities of targets."""

    def __init__(self, layer: nn.Linear, group: int, active: ActiveSegments, *, packed: bool = False) -> None:
        self._layer = layer
        self._active = active
        self._group = group
        self._forward = Product(layer.weight, layer.bias, packed=packed)
        self._backward = Product(layer.weight.t(), packed=packed)
        self._columns = [slice(0, layer.out_features)]

    def logits(self, hidden: Tensor, segments: Sequence[Segment]) -> Tensor:
        """(T, E) → float32 (T, V). No gradient."""
        with torch.no_grad(), WIDE:
            return self._chunk(hidden, segments).logits

    def chunks(self, hidden: Tensor, segments: Sequence[Segment]) -> Iterator[tuple[slice, Tensor]]:
        """As `logits`, for some rows at a time, so that they never exist for all."""
        for rows in self._row_chunks(len(hidden)):
            yield rows, self.logits(hidden[rows], clip(segments, rows))

    def logprobs(self, hidden: Tensor, pairs: Pairs, segments: Sequence[Segment]) -> Tensor:
        """(T, E) → float32 (P,), without gradient."""
        with torch.no_grad(), WIDE:
            result = hidden.new_empty(len(pairs.targets), dtype=torch.float32)
            for rows in self._row_chunks(len(hidden)):
                mine = pairs.within(rows.start, rows.stop)
                chunk = self._chunk(hidden[rows], clip(segments, rows))
                result[mine] = chunk.logprobs(pairs, mine, rows.start)
            return result

    def minimise(
        self, hidden: Tensor, pairs: Pairs, segments: Sequence[Segment], objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities float32 (P,) and the gradient of the objective by `hidden` (T, E).

        The gradients of the head's own adapters are added to their buffers.
        """
        with torch.no_grad(), WIDE:
            logprobs = None if objective.per_token else self.logprobs(hidden, pairs, segments)
            gradient = None if logprobs is None else objective.gradient(logprobs, slice(0, len(logprobs)))
            grad_hidden = torch.empty_like(hidden)
            seen = []
            for rows in self._row_chunks(len(hidden)):
                mine = pairs.within(rows.start, rows.stop)
                chunk = self._chunk(hidden[rows], clip(segments, rows))
                seen.append(chunk.logprobs(pairs, mine, rows.start))
                g = objective.gradient(seen[-1], mine) if gradient is None else gradient[mine]
                grad_hidden[rows] = self._backward_chunk(chunk, pairs, mine, rows.start, g)
            return torch.cat(seen), grad_hidden

    def reverse_kl(self, student: Rows, reference: Rows, weights: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """KL(student ‖ reference) of each row over the whole vocabulary, and its gradient.

        With π = softmax(logits / τ): d KL / d logits = π_student · (log π_student − log π_reference − KL) / τ.

        Args:
            student: P rows of hidden states; reference: as many.
            weights: float32 (P,), what each row's gradient is multiplied by.

        Returns:
            float32 (P,), and the gradient of Σ weights · KL by the student's hidden states (P, E). Gradients of the
            head's own adapters are added to the student's buffers.
        """
        with torch.no_grad(), WIDE:
            divergence = torch.empty_like(weights)
            grad_hidden = torch.empty_like(student.hidden)
            for rows in self._row_chunks(len(weights), tensors=2):
                chunk = self._chunk(student.hidden[rows], clip(student.segments, rows))
                ours = chunk.logits.div_(temperature)
                torch.log_softmax(ours, dim=1, out=ours)
                other = self._chunk(reference.hidden[rows], clip(reference.segments, rows)).logits.div_(temperature)
                torch.log_softmax(other, dim=1, out=other)
                difference = torch.sub(ours, other, out=other)
                probability = ours.exp_()
                divergence[rows] = torch.linalg.vecdot(probability, difference)
                scale = (weights[rows] / temperature)[:, None]
                grad_logits = difference.sub_(divergence[rows, None]).mul_(probability).mul_(scale)
                grad_hidden[rows] = self._backward_logits(chunk.hidden, chunk.segments, grad_logits)
            return divergence, grad_hidden

    def _row_chunks(self, num_rows: int, tensors: int = 1) -> Iterator[slice]:
        """Cut rows so that `tensors` tensors of the vocabulary's size stay within the limit."""
        elements = CUDA_CHUNK_ELEMENTS if self._layer.weight.is_cuda else CHUNK_ELEMENTS
        step = max(1, elements // tensors // self._layer.out_features)
        return (slice(start, min(num_rows, start + step)) for start in range(0, num_rows, step))

    def _chunk(self, hidden: Tensor, segments: Sequence[Segment]) -> _Chunk:
        logits = self._forward(hidden)
        for part in low_rank_parts(self._active.stretches(segments), self._group, self._columns):
            part.add_forward(hidden, logits)
        return _Chunk(hidden, segments, logits.float())

    def _backward_chunk(self, chunk: _Chunk, pairs: Pairs, mine: slice, offset: int, grad: Tensor) -> Tensor:
        """The gradient (n, E) of the chunk's hidden states; adds those of its adapters."""
        rows, targets = pairs.rows[mine] - offset, pairs.targets[mine]
        if not pairs.one_each:
            wanted = torch.zeros(len(chunk.hidden), device=grad.device).index_add_(0, rows, grad.abs()) != 0
        else:
            wanted = grad != 0
        chosen = wanted.nonzero()[:, 0]
        if len(chosen) > WORTH_SELECTING * len(wanted):
            return self._backward_logits(chunk.hidden, chunk.segments, chunk.grad_logits(rows, targets, grad))
        result = torch.zeros_like(chunk.hidden)
        if len(chosen):
            kept = grad != 0
            place = wanted.cumsum(0) - 1
            few = chunk.select(chosen)
            grad_logits = few.grad_logits(place[rows[kept]], targets[kept], grad[kept])
            result[chosen] = self._backward_logits(few.hidden, few.segments, grad_logits)
        return result

    def _backward_logits(self, hidden: Tensor, segments: Sequence[Segment], grad_logits: Tensor) -> Tensor:
        """(n, E) and (n, V) → (n, E); adds the gradients of the adapters' factors."""
        grad_logits = grad_logits.to(self._layer.weight.dtype)
        grad_hidden = self._backward(grad_logits)
        for part in low_rank_parts(self._active.stretches(segments), self._group, self._columns):
            part.add_backward(hidden, part.project(hidden), [grad_logits], grad_hidden)
        return grad_hidden


@dataclass
class _Chunk:
    """Some rows of a batch and their logits, float32 (n, V); `segments` count from the chunk's first row."""

    hidden: Tensor
    segments: Sequence[Segment]
    logits: Tensor

    def logprobs(self, pairs: Pairs, mine: slice, offset: int) -> Tensor:
        """Of the chunk's pairs, float32; the logits become log-probabilities."""
        torch.log_softmax(self.logits, dim=1, out=self.logits)
        return self.logits[pairs.rows[mine] - offset, pairs.targets[mine]]

    def grad_logits(self, rows: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
        """Σ grad · (onehot(target) − softmax) for each row, written over its log-probabilities."""
        total = grad.new_zeros(len(self.hidden)).index_add_(0, rows, grad)
        return self.logits.exp_().mul_(-total[:, None]).index_put_((rows, targets), grad, accumulate=True)

    def select(self, rows: Tensor) -> _Chunk:
        """Only these rows, int64 in ascending order."""
        return _Chunk(self.hidden[rows], select(self.segments, rows), self.logits[rows])
