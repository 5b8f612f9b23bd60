"""The engine: commands in, results out, one step at a time.

The loop of a worker is one sentence: receive commands, take a step, send results. A step is one training
micro-batch, one optimizer step or file, or one token of every running sample, as the scheduler says.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TypeAlias

from mint.config import EngineConfig
from mint.engine.adapters import Adapter
from mint.engine.core import (
    Command,
    CreateRun,
    ExportRevision,
    ForwardBackward,
    LoadState,
    OptimStep,
    RestoreRun,
    Result,
    RunReady,
    Sample,
    Saved,
    SaveState,
    Stepped,
    TrainingCommand,
    Unloaded,
    UnloadRun,
)
from mint.engine.files import fresh_folder, sync_folder
from mint.engine.generator import Generator
from mint.engine.revisions import RevisionCache
from mint.engine.scheduler import Passes, Scheduler, Single
from mint.engine.trainer import PassExecution, Trainer
from mint.errors import MintError, NotFoundError
from mint.models.causal_lm import CausalLM

logger = logging.getLogger(__name__)

Answer: TypeAlias = tuple[int, Result | MintError]


class Engine:
    """Everything one worker holds: the base model, its runs, its live samples."""

    def __init__(self, model: CausalLM, name: str, config: EngineConfig, token_bytes: list[bytes]) -> None:
        self._scheduler = Scheduler(config.max_batch_tokens)
        self._trainer = Trainer(model, name, config)
        self._generator = Generator(model, config, token_bytes)
        self._revisions = RevisionCache(model.sites, model.device, config.revision_cache_bytes)
        self._passes: tuple[tuple[int, ...], PassExecution] | None = None

    @property
    def sample_capacity(self) -> int:
        """Longest prompt and sample together that could ever run."""
        return self._generator.capacity_tokens

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return self._has_training or self._generator.has_work

    @property
    def _has_training(self) -> bool:
        return self._passes is not None or self._scheduler.has_training

    def submit(self, number: int, command: Command) -> Iterable[Answer]:
        """Queue a command; the answers are those that are known at once, which are refusals."""
        if not isinstance(command, Sample):
            self._scheduler.add(number, command)
            return ()
        try:
            adapter = self._revisions.get(command.revision) if command.revision else None
            self._generator.add(number, command, adapter)
        except MintError as error:
            return ((number, error),)
        return ()

    def step(self) -> list[Answer]:
        """Take one step; returns the answers that it completes."""
        side = self._scheduler.side(training=self._has_training, sampling=self._generator.has_work)
        if side is None:
            return []
        started = perf_counter()
        answers = list(self._train() if side == "training" else self._generator.step())
        self._scheduler.charge(side, perf_counter() - started)
        return answers

    def _train(self) -> Iterator[Answer]:
        if self._passes is not None:
            yield from self._advance()
            return
        work = self._scheduler.next_training()
        if isinstance(work, Single):
            yield self._single(work)
        else:
            yield from self._start(work)

    # --- passes ---------------------------------------------------------------------------------------------

    def _start(self, work: Passes) -> Iterator[Answer]:
        """Begin a batch of passes; those whose run is gone are refused and leave the others alone."""
        members = []
        for number, command in work.members:
            try:
                self._trainer.run(command.run_id)
                members.append((number, command))
            except NotFoundError as error:
                yield number, error
        if members:
            numbers, commands = zip(*members, strict=True)
            self._passes = numbers, self._trainer.start(commands)
            yield from self._advance()

    def _advance(self) -> Iterator[Answer]:
        """One micro-batch. A batch that fails before its first backward is split to find the one at fault."""
        assert self._passes is not None
        numbers, execution = self._passes
        try:
            execution.advance()
        except Exception as error:
            if execution.tainted:
                raise  # some gradients were added and some not: only a replay of the journal mends that
            self._passes = None
            traceback.clear_frames(error.__traceback__)  # they hold the batch's activations
            yield from self._retry_alone(numbers, execution.passes, error)
            return
        if execution.done:
            self._passes = None
            yield from zip(numbers, execution.results(), strict=True)

    def _retry_alone(
        self, numbers: tuple[int, ...], passes: Iterable[ForwardBackward], error: Exception
    ) -> Iterator[Answer]:
        if len(numbers) == 1:
            logger.error("a pass failed by itself", exc_info=error)
            yield numbers[0], MintError(f"the pass failed in the engine: {error}")
            return
        for number, command in zip(numbers, passes, strict=True):
            self._passes = (number,), self._trainer.start([command])
            while self._passes is not None:
                yield from self._advance()

    # --- everything else ------------------------------------------------------------------------------------

    def _single(self, work: Single) -> Answer:
        try:
            return work.number, self._execute(work.command)
        except MintError as error:
            return work.number, error
        except Exception as error:
            if isinstance(work.command, OptimStep):
                raise  # the weights may be stepped in part: only a replay of the journal mends that
            name = type(work.command).__name__
            logger.exception("%s failed", name)
            return work.number, MintError(f"{name} failed in the engine: {error}")

    def _execute(self, command: TrainingCommand) -> Result:  # noqa: PLR0911
        trainer = self._trainer
        match command:
            case CreateRun(run_id, lora):
                return RunReady(trainer.create(run_id, lora))
            case RestoreRun(run_id, directory, with_optimizer):
                return RunReady(trainer.load(run_id, directory, with_optimizer=with_optimizer))
            case LoadState(run_id, directory, with_optimizer):
                trainer.run(run_id)
                return RunReady(trainer.load(run_id, directory, with_optimizer=with_optimizer))
            case OptimStep(run_id, adam):
                return Stepped(trainer.step(run_id, adam))
            case SaveState(run_id, directory):
                fresh_folder(directory)
                trainer.save(run_id, directory)
                return Saved(sync_folder(directory))
            case ExportRevision(run_id, directory, key):
                fresh_folder(directory)
                trainer.export(run_id, directory)
                saved = Saved(sync_folder(directory))
                self._keep_revision(run_id, key)
                return saved
            case UnloadRun(run_id):
                trainer.unload(run_id)
                return Unloaded()
            case ForwardBackward():
                raise AssertionError("passes come in batches")

    def _keep_revision(self, run_id: str, key: str) -> None:
        """What was exported is likely to be sampled next: keep a copy, which no further step touches."""
        live = self._trainer.run(run_id).adapter
        self._revisions.put(key, Adapter(live.layout, live.flat.clone()))
