"""Reverse KL to a reference: gradients over the whole vocabulary, into the student's run.

The loss of a datum is Σ_t w_t · KL(π_student(·) ‖ π_reference(·)) over the positions that predict its targets, which
are the last of both inputs. The inputs may differ in front of them: a reference may have seen a longer prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mint.engine.adapters import Adapter
from mint.engine.core import Distilled, Int32Array, ReverseKL, ReverseKLDatum
from mint.engine.loss_refusals import not_finite, overflow
from mint.engine.optimizer import TrainableAdapter
from mint.engine.packing import PackedBatch, pack_shared
from mint.engine.prefixes import sharing_order
from mint.models.causal_lm import CausalLM
from mint.models.logprobs import Rows
from mint.models.segments import Segment


@dataclass(frozen=True)
class View:
    """A sequence as one side sees it; see `Sharable`."""

    adapter: Adapter | None
    tokens: Int32Array
    family: object


class Distillation:
    """One `ReverseKL` in progress; advanced like a `PassExecution`.

    Args:
        reference: the adapter of the reference; None is the base model.
    """

    def __init__(
        self, model: CausalLM, run: TrainableAdapter, command: ReverseKL, reference: Adapter | None, max_tokens: int
    ) -> None:
        self.passes = (command,)
        self._model = model
        self._run = run
        self._mark = run.mark()
        self._reference = reference
        self._losses: list[float] = []
        self._parts = deque(_micro_batches(command.data, max_tokens))

    @property
    def done(self) -> bool:
        """Whether every micro-batch has run."""
        return not self._parts

    def advance(self) -> None:
        """The next micro-batch: the reference forward, the student forward and backward.

        Raises:
            BadRequestError: a datum's loss, or the gradient, is not finite. `undo` takes back what was added.
        """
        data = self._parts.popleft()
        sizes = [len(datum.targets) for datum in data]
        weights = torch.from_numpy(np.concatenate([datum.weights for datum in data])).to(self._model.device)
        reference = self._reference_rows(data)
        batch = self._packed(self._run.adapter, [datum.student for datum in data])
        rows = self._predicting(batch, sizes)

        def head_pass(hidden: Tensor) -> tuple[Tensor, Tensor]:
            student = Rows(hidden[rows], [Segment(0, len(rows), self._run.adapter)])
            temperature = self.passes[0].temperature
            divergence, grad = self._model.head.reverse_kl(student, reference, weights, temperature)
            # a row that several datums share has the sum of their gradients
            return divergence, torch.zeros_like(hidden).index_add_(0, rows, grad)

        divergence = self._model.backward(batch.tokens, batch.positions, batch.plan, batch.segments, head_pass)
        for terms in torch.split((divergence * weights).double(), sizes):
            loss = float(terms.sum())
            if not np.isfinite(loss):
                raise not_finite(len(self._losses))
            self._losses.append(loss)
        if self.done and not self._run.is_finite:
            raise overflow({i: float(np.abs(datum.weights).max()) for i, datum in enumerate(self.passes[0].data)})

    def undo(self) -> None:
        """Give the run the gradients that it had before."""
        self._run.restore(self._mark)

    def results(self) -> list[Distilled]:
        """The one result, once `done`."""
        total, count = sum(self._losses), len(self._losses)
        targets = sum(len(datum.targets) for datum in self.passes[0].data)
        metrics = {"loss:sum": total, "loss:mean": total / count, "num_tokens:sum": float(targets)}
        return [Distilled(tuple(self._losses), metrics)]

    def _reference_rows(self, data: Sequence[ReverseKLDatum]) -> Rows:
        batch = self._packed(self._reference, [datum.reference for datum in data])
        hidden = self._model.hidden_states(batch.tokens, batch.positions, batch.plan, batch.segments)
        rows = self._predicting(batch, [len(datum.targets) for datum in data])
        return Rows(hidden[rows], [Segment(0, len(rows), self._reference)])

    def _packed(self, adapter: Adapter | None, sequences: Iterable[Int32Array]) -> PackedBatch:
        views = [View(adapter, tokens, self._family(place, tokens)) for place, tokens in enumerate(sequences)]
        order = sharing_order([view.tokens for view in views])
        batch = pack_shared([views[place] for place in order], self._model.device)
        rows = dict(zip(order, batch.rows, strict=True))
        return replace(batch, rows=[rows[place] for place in range(len(views))])

    def _family(self, place: int, tokens: Int32Array) -> object:
        window = self._model.narrowest_window
        return None if window is None or len(tokens) <= window else place

    def _predicting(self, batch: PackedBatch, sizes: Sequence[int]) -> Tensor:
        """The rows of the last positions of each sequence."""
        rows = [rows[-size:] for rows, size in zip(batch.rows, sizes, strict=True)]
        return torch.from_numpy(np.concatenate(rows)).to(self._model.device)


def _micro_batches(data: Sequence[ReverseKLDatum], max_tokens: int) -> Iterator[list[ReverseKLDatum]]:
    """Cut so that neither side has more than `max_tokens`, but for a single longer sequence."""
    part: list[ReverseKLDatum] = []
    size = 0
    for datum in data:
        longest = max(len(datum.student), len(datum.reference))
        if part and size + longest > max_tokens:
            yield part
            part, size = [], 0
        part.append(datum)
        size += longest
    if part:
        yield part
