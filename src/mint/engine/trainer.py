"""Training: passes of several runs as packed batches, optimizer steps, and a run's files.

The trainer holds every resident run. Gradients of a pass are added to the runs' flat buffers as the backward
pass goes; datums of different runs share a batch and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mint.config import EngineConfig
from mint.engine.adapters import Adapter, save_adapter
from mint.engine.core import (
    AdamParams,
    Datum,
    FloatArray,
    ForwardBackward,
    Int32Array,
    LoraShape,
    Passed,
)
from mint.engine.losses import LOSSES
from mint.engine.optimizer import TrainableAdapter
from mint.engine.packing import PackedBatch, micro_batches, pack, packing_order
from mint.errors import NotFoundError
from mint.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Item:
    """A datum on its way through a batch: datum `index` of pass number `owner`."""

    owner: int
    index: int
    adapter: Adapter
    datum: Datum

    @property
    def tokens(self) -> Int32Array:
        """See `Packable`."""
        return self.datum.tokens


class Trainer:
    """All runs that are resident on one base model."""

    def __init__(self, model: CausalLM, name: str, config: EngineConfig) -> None:
        self._model = model
        self._name = name
        self._max_batch_tokens = config.max_batch_tokens
        self._runs: dict[str, TrainableAdapter] = {}

    def create(self, run_id: str, shape: LoraShape) -> LoraShape:
        """Make a run with a fresh adapter."""
        self._runs[run_id] = TrainableAdapter.create(shape, self._model.sites, self._model.device)
        return shape

    def load(self, run_id: str, directory: Path, *, with_optimizer: bool) -> LoraShape:
        """Make a run from a checkpoint, or replace the state of the one that has this id.

        Raises:
            BadRequestError: the checkpoint is damaged or of another base model; the run stays as it was.
        """
        loaded = TrainableAdapter.load(directory, self._model.sites, self._model.device, with_optimizer=with_optimizer)
        self._runs[run_id] = loaded
        return loaded.adapter.layout.shape

    def unload(self, run_id: str) -> None:
        """Forget a run."""
        self._runs.pop(run_id, None)

    def run(self, run_id: str) -> TrainableAdapter:
        """The run of that id.

        Raises:
            NotFoundError: no such run is resident.
        """
        try:
            return self._runs[run_id]
        except KeyError:
            raise NotFoundError(f"run {run_id} is not loaded") from None

    def step(self, run_id: str, params: AdamParams) -> dict[str, float]:
        """One optimizer step; see `TrainableAdapter.step`."""
        return self.run(run_id).step(params)

    def save(self, run_id: str, directory: Path) -> None:
        """Write a training checkpoint."""
        self.run(run_id).save(directory, self._name)

    def export(self, run_id: str, directory: Path) -> None:
        """Write the weights alone, as a revision."""
        save_adapter(self.run(run_id).adapter, directory, self._name)

    def start(self, passes: Sequence[ForwardBackward]) -> PassExecution:
        """Begin several passes as one batch, to be advanced micro-batch by micro-batch.

        All passes are of one kind: with gradients, or all `forward_only`.

        Raises:
            NotFoundError: a pass names a run that is not resident; nothing has been computed.
        """
        items = [
            Item(owner, index, self.run(command.run_id).adapter, datum)
            for owner, command in enumerate(passes)
            for index, datum in enumerate(command.data)
        ]
        return PassExecution(self._model, passes, micro_batches(packing_order(items), self._max_batch_tokens))


class PassExecution:
    """Passes in progress.

    Attributes:
        tainted: gradients have begun to flow into the runs' buffers, so the passes cannot be started over.
    """

    def __init__(self, model: CausalLM, passes: Sequence[ForwardBackward], parts: Iterable[Sequence[Item]]) -> None:
        self.passes = passes
        self.tainted = False
        self._model = model
        self._parts = deque(parts)
        self._logprobs: dict[tuple[int, int], FloatArray] = {}
        self._losses = [0.0] * len(passes)

    @property
    def done(self) -> bool:
        """Whether every micro-batch has run."""
        return not self._parts

    def advance(self) -> None:
        """Forward, losses and backward of the next micro-batch."""
        items = self._parts.popleft()
        batch = pack(items, self._model.device)
        with torch.set_grad_enabled(not self.passes[0].forward_only):
            p = torch.split(self._target_logprobs(batch, items), batch.lengths)
            loss = self._add_losses(items, p)
        if loss.requires_grad:
            self.tainted = True
            loss.backward()  # type: ignore[no-untyped-call]
        for item, logprobs in zip(items, p, strict=True):
            self._logprobs[item.owner, item.index] = logprobs.detach().cpu().numpy()

    def results(self) -> list[Passed]:
        """One per pass, in order, once `done`."""
        return [self._result(owner, command) for owner, command in enumerate(self.passes)]

    def _target_logprobs(self, batch: PackedBatch, items: Sequence[Item]) -> Tensor:
        targets = _gather(items, "target_tokens", batch.tokens.device)
        hidden = self._model.hidden_states(batch.tokens, batch.positions, batch.plan, batch.segments)
        return self._model.head.target_logprobs(hidden, targets, batch.segments)

    def _add_losses(self, items: Sequence[Item], logprobs: Sequence[Tensor]) -> Tensor:
        """Add each pass's share to its loss; returns the sum of all shares, through which gradients flow."""
        total = torch.zeros((), device=logprobs[0].device)
        for owner, command in enumerate(self.passes):
            mine = [place for place, item in enumerate(items) if item.owner == owner]
            if mine:
                terms = _loss_terms(command, [items[i] for i in mine], torch.cat([logprobs[i] for i in mine]))
                self._losses[owner] += float(terms.detach().sum(dtype=torch.float64))
                total = total + terms.sum()
        return total

    def _result(self, owner: int, command: ForwardBackward) -> Passed:
        """`loss:mean` is per datum: the SDK's weighted mean over chunks is then the mean per datum again."""
        loss, count = self._losses[owner], len(command.data)
        return Passed(
            tuple(self._logprobs[owner, index] for index in range(count)),
            {"loss:sum": loss, "loss:mean": loss / count, "num_tokens:sum": float(command.num_tokens)},
        )


def _loss_terms(command: ForwardBackward, items: Sequence[Item], p: Tensor) -> Tensor:
    """The loss terms of one pass over some of its datums, whose log-probabilities are concatenated in `p`."""
    names = [name for name in items[0].datum.loss_inputs if name != "target_tokens"]
    inputs = {name: _gather(items, name, p.device) for name in names}
    return LOSSES[command.loss_fn](p, inputs, command.loss_config)


def _gather(items: Sequence[Item], name: str, device: torch.device) -> Tensor:
    """One loss input of several datums, concatenated."""
    return torch.from_numpy(np.concatenate([item.datum.loss_inputs[name] for item in items])).to(device)
