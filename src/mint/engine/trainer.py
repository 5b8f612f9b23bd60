"""Training: passes of several runs as packed batches, optimizer steps, and a run's files.

The trainer holds every resident run. Gradients of a pass are added to the runs' flat buffers as the backward
pass goes; datums of different runs share a batch and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

import torch

from mint.config import EngineConfig
from mint.engine.adapters import Adapter, save_adapter
from mint.engine.core import (
    AdamParams,
    FloatArray,
    ForwardBackward,
    Image,
    Int64Array,
    LoraShape,
    Passed,
    ReverseKL,
)
from mint.engine.corrections import batch_scale
from mint.engine.distillation import Distillation
from mint.engine.failures import LostRunError
from mint.engine.image_cache import ImageCache
from mint.engine.loads import check_pass_work, loss_load
from mint.engine.loss_parts import Item, Survey, Tally
from mint.engine.loss_refusals import overflow
from mint.engine.objective import BatchObjective, combined
from mint.engine.optimizer import TrainableAdapter
from mint.engine.packing import PackedBatch, micro_batches, pack_shared
from mint.engine.prefixes import family
from mint.engine.residency import Residents
from mint.errors import MintError
from mint.models.causal_lm import CausalLM
from mint.models.vision import Insert

T = TypeVar("T")


class Trainer:
    """All runs that are resident on one base model."""

    def __init__(self, model: CausalLM, name: str, config: EngineConfig, images: ImageCache) -> None:
        self._model = model
        self._name = name
        self._images = images
        self._max_batch_tokens = config.max_batch_tokens
        folder = config.scratch_dir / quote(name, safe="") if config.scratch_dir is not None else None
        self._runs = Residents(config.max_resident_runs, folder)

    def create(self, run_id: str, shape: LoraShape) -> LoraShape:
        """Make a run with a fresh adapter."""
        self._runs.put(run_id, TrainableAdapter.create(shape, self._model.sites, self._model.device))
        return shape

    def load(self, run_id: str, directory: Path, *, with_optimizer: bool) -> LoraShape:
        """Make a run from a checkpoint, or replace the state of the one that has this id.

        Raises:
            BadRequestError: the checkpoint is damaged or of another base model; the run stays as it was.
        """
        loaded = TrainableAdapter.load(directory, self._model.sites, self._model.device, with_optimizer=with_optimizer)
        self._runs.put(run_id, loaded)
        return loaded.adapter.layout.shape

    def unload(self, run_id: str) -> None:
        """Forget a run."""
        self._runs.drop(run_id)

    def run(self, run_id: str) -> TrainableAdapter:
        """The run of that id, on the device.

        Raises:
            NotFoundError: there is no such run.
        """
        return self._runs.acquire([run_id])[run_id]

    def has(self, run_id: str) -> bool:
        """Whether there is such a run."""
        return run_id in self._runs

    def step(self, run_id: str, params: AdamParams) -> dict[str, float]:
        """One optimizer step; see `TrainableAdapter.step`.

        Raises:
            LostRunError: it failed when it may have changed some of the weights.
        """
        run = self.run(run_id)
        try:
            return run.step(params)
        except Exception as error:
            raise LostRunError(f"the optimizer step of run {run_id} failed: {error}") from error

    def saver(self, run_id: str) -> Callable[[Path], None]:
        """A function that writes the run's state of this moment to a folder, as a training checkpoint."""
        return partial(self.run(run_id).saved().write, base_model=self._name)

    def snapshot(self, run_id: str) -> Callable[[Path], None]:
        """As `saver`, for a run of which that is all there is.

        Raises:
            MintError: it has gradients: the step in front failed, and left what passes before it had added.
        """
        if self.run(run_id).has_gradients:
            raise MintError(f"run {run_id} has gradients, which a snapshot would lose")
        return self.saver(run_id)

    def export(self, run_id: str, directory: Path) -> None:
        """Write the weights alone, as a revision."""
        save_adapter(self.run(run_id).adapter, directory, self._name)

    def start(self, passes: Sequence[ForwardBackward]) -> PassExecution:
        """Begin several passes as one batch, to be advanced micro-batch by micro-batch.

        All passes are of one kind: with gradients, or all `forward_only`.

        Raises:
            NotFoundError: a pass names a run that there is not; nothing has been computed.
        """
        runs = self._runs.acquire(command.run_id for command in passes)
        # side by side in the batch as in memory: then short segments need no copies
        place = {run_id: run.adapter.flat.data_ptr() for run_id, run in runs.items()}
        owners = sorted(range(len(passes)), key=lambda owner: place[passes[owner].run_id])
        items = [item for owner in owners for item in self._items(owner, passes[owner], runs[passes[owner].run_id])]
        return PassExecution(self._model, passes, items, self._max_batch_tokens, list(runs.values()), self._images)

    def _items(self, owner: int, command: ForwardBackward, run: TrainableAdapter) -> list[Item]:
        """The datums of a pass, families together."""
        window = self._model.narrowest_window
        families = [family(owner, index, datum, window) for index, datum in enumerate(command.data)]
        place = {each: number for number, each in enumerate(dict.fromkeys(families))}
        order = sorted(range(len(families)), key=lambda index: place[families[index]])
        return [Item(owner, index, run.adapter, command.data[index], families[index]) for index in order]

    def distill(self, command: ReverseKL, reference: Adapter | None) -> Distillation:
        """Begin a reverse-KL pass.

        Raises:
            NotFoundError: there is no such run.
        """
        return Distillation(self._model, self.run(command.run_id), command, reference, self._max_batch_tokens)


class PassExecution:
    """Passes in progress.

    Args:
        items: the passes' datums, those of a run and of a pass together.
        runs: whose gradients the passes add to.
    """

    def __init__(
        self,
        model: CausalLM,
        passes: Sequence[ForwardBackward],
        items: Sequence[Item],
        max_tokens: int,
        runs: Sequence[TrainableAdapter],
        images: ImageCache,
    ) -> None:
        self.passes = passes
        self._model = model
        self._images = images
        self._forward_only = passes[0].forward_only
        self._marks = [] if self._forward_only else [(run, run.mark()) for run in runs]
        self._tallies = [Tally() for _ in passes]
        self._logprobs: dict[tuple[int, int], FloatArray] = {}
        self._slopes: dict[int, float] = {}  # by datum; it is asked for when there is one pass
        self._normalised = {owner for owner, command in enumerate(passes) if _is_normalised(command)}

        def cut() -> Iterator[list[Item]]:
            return micro_batches(items, max_tokens, lambda item: loss_load(passes[item.owner], item.datum, max_tokens))

        surveyed = cut() if self._normalised else iter(())
        self._to_survey = _Ahead(part for part in surveyed if any(item.owner in self._normalised for item in part))
        self._parts = _Ahead(cut())
        self._surveys: dict[int, list[Survey]] = {}
        self._weight_scales: dict[int, float] = {}

    @property
    def done(self) -> bool:
        """Whether every micro-batch has run."""
        return self._parts.is_empty

    def advance(self) -> None:
        """Forward, losses and backward of the next micro-batch.

        Raises:
            BadRequestError: a datum has no finite loss, its custom loss fails or is too much, or gradients are not
                finite. `undo` takes back what was added.
        """
        if not self._to_survey.is_empty:
            self._survey(self._to_survey.take())
            return
        objective, batch, inserts = self._prepared(self._parts.take())
        if self._forward_only:
            logprobs = self._logprobs_of(batch, inserts, objective)
            objective.evaluate(logprobs)
        else:
            head_pass = partial(
                self._model.head.minimise, pairs=objective.pairs, segments=batch.segments, objective=objective
            )
            logprobs = self._model.backward(
                batch.tokens, batch.positions, batch.plan, batch.segments, head_pass, inserts
            )
        for owner, tally in objective.tallies():
            self._tallies[owner].add(tally)
            check_pass_work(self._tallies[owner].work)
        self._check_gradients(objective)
        for item, values in objective.by_datum(logprobs):
            self._logprobs[item.owner, item.index] = values

    def _check_gradients(self, objective: BatchObjective) -> None:
        if self._forward_only:
            return
        for item, slope in objective.slopes():
            self._slopes[item.index] = slope
        if self.done and not all(run.is_finite for run, _ in self._marks):
            raise overflow(self._slopes)

    def undo(self) -> None:
        """Give the runs the gradients that they had before."""
        for run, mark in self._marks:
            run.restore(mark)

    def results(self) -> list[Passed]:
        """One per pass, in order, once `done`."""
        return [self._result(owner, command) for owner, command in enumerate(self.passes)]

    def _prepared(self, items: Sequence[Item]) -> tuple[BatchObjective, PackedBatch, list[Insert]]:
        device = self._model.device
        batch = pack_shared(items, device, [item.datum.blocks for item in items])
        inserts = self._images.inserts(list(_image_places(items, batch)), device)
        return BatchObjective(self.passes, items, batch.rows, self._weight_scales, device), batch, inserts

    def _survey(self, items: Sequence[Item]) -> None:
        """Normalising the weights of a pass needs the log-probabilities of all its tokens before the first gradient."""
        objective, batch, inserts = self._prepared(items)
        for owner, survey in objective.survey(self._logprobs_of(batch, inserts, objective)):
            self._surveys.setdefault(owner, []).append(survey)
        if self._to_survey.is_empty:
            for owner in self._normalised:
                config, whole = self.passes[owner].rollout_correction, combined(self._surveys[owner])
                assert config is not None
                self._weight_scales[owner] = batch_scale(whole.weight, whole.counted, whole.datums, config)

    def _logprobs_of(self, batch: PackedBatch, inserts: Sequence[Insert], objective: BatchObjective) -> torch.Tensor:
        hidden = self._model.hidden_states(batch.tokens, batch.positions, batch.plan, batch.segments, inserts)
        return self._model.head.logprobs(hidden, objective.pairs, batch.segments)

    def _result(self, owner: int, command: ForwardBackward) -> Passed:
        """`loss:mean` is per datum: the SDK's weighted mean over chunks is then the mean per datum again."""
        tally, count = self._tallies[owner], len(command.data)
        total = tally.loss * count if command.is_mean else tally.loss
        metrics = {"loss:sum": total, "loss:mean": total / count}
        metrics["num_tokens:sum"] = float(command.num_tokens)
        metrics |= {name: tally.sums[name] / (tally.counts[name] or 1.0) for name in tally.sums}
        return Passed(tuple(self._logprobs[owner, index] for index in range(count)), metrics)


def _image_places(items: Sequence[Item], batch: PackedBatch) -> Iterator[tuple[Int64Array, Image, int]]:
    """The rows of each image; of what several datums share, once."""
    seen: set[tuple[int, bytes]] = set()
    for item, rows in zip(items, batch.rows, strict=True):
        for placed in item.datum.images:
            own = rows[placed.start : placed.start + placed.num_tokens]
            if (place := (int(own[0]), placed.image.key)) not in seen:
                seen.add(place)
                yield own, placed.image, 0


class _Ahead(Generic[T]):
    """Items of an iterator, which are made as late as it can be told whether there are more."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._next = list(islice(self._items, 1))

    @property
    def is_empty(self) -> bool:
        return not self._next

    def take(self) -> T:
        (item,), self._next = self._next, list(islice(self._items, 1))
        return item


def _is_normalised(command: ForwardBackward) -> bool:
    correction = command.rollout_correction
    return correction is not None and correction.rollout_is_batch_normalize
