"""The engine: commands in, results out, one step at a time.

The loop of a worker is one sentence: receive commands, take a step, send results. A step is one training
micro-batch, one optimizer step or file, or one token of every running sample, as the scheduler says.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from mint.config import EngineConfig
from mint.engine.adapters import Adapter, save_adapter
from mint.engine.constraints import ConstraintCompiler
from mint.engine.core import (
    Cancel,
    Command,
    CreateRun,
    Distilled,
    ExportRevision,
    ForwardBackward,
    Interpolate,
    LoadState,
    OptimStep,
    Passed,
    Progress,
    RestoreRun,
    Result,
    ReverseKL,
    RunReady,
    Sample,
    Saved,
    SaveState,
    Snapshot,
    Stepped,
    TrainingCommand,
    TrainStep,
    Unloaded,
    UnloadRun,
)
from mint.engine.distillation import Distillation
from mint.engine.failures import FATAL, refusal
from mint.engine.files import write_folder
from mint.engine.generator import Generator
from mint.engine.image_cache import ImageCache
from mint.engine.interpolation import interpolate
from mint.engine.revisions import RevisionCache
from mint.engine.scheduler import Passes, Scheduler, Single
from mint.engine.trainer import PassExecution, Trainer
from mint.errors import MintError, NotFoundError
from mint.models.causal_lm import CausalLM

Answer: TypeAlias = tuple[int, Result | Progress | MintError]


class Engine:
    """Everything one worker holds: the base model, its runs, its live samples.

    Args:
        deliver: called with answers that are known between steps, from another thread.
    """

    def __init__(
        self,
        model: CausalLM,
        name: str,
        config: EngineConfig,
        token_bytes: list[bytes],
        constraints: ConstraintCompiler,
        deliver: Callable[[Answer], None],
    ) -> None:
        self._deliver = deliver
        self._sites, self._name = model.sites, name
        self._files = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._scheduler = Scheduler(config.max_batch_tokens, config.max_resident_runs)
        images = ImageCache(model.images, config.image_cache_bytes)
        self._trainer = Trainer(model, name, config, images)
        self._generator = Generator(model, config, token_bytes, constraints, images)
        self._revisions = RevisionCache(model.sites, model.device, config.revision_cache_bytes)
        self._passes: tuple[tuple[int, ...], PassExecution | Distillation] | None = None
        self._to_retry: deque[tuple[int, ForwardBackward]] = deque()
        self._first_halves: dict[int, Passed | MintError | None] = {}

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
        return self._passes is not None or bool(self._to_retry) or self._scheduler.has_training

    def submit(self, number: int, command: Command) -> Iterable[Answer]:
        """Queue a command; the answers are those that are known at once, which are refusals."""
        if isinstance(command, TrainStep):
            self._first_halves[number] = None
            self._scheduler.add(number, command.forward_backward)
            self._scheduler.add(number, OptimStep(command.run_id, command.adam))
            return ()
        if isinstance(command, Cancel):
            self._generator.cancel(number)
            return ()
        if isinstance(command, Interpolate):
            self._files.submit(self._write, number, command.directory, partial(self._write_sum, command))
            return ()
        if not isinstance(command, Sample):
            self._scheduler.add(number, command)
            return ()
        try:
            adapter = self._revisions.get(command.revision) if command.revision else None
            self._generator.add(number, command, adapter)
        except FATAL:
            raise
        except Exception as error:
            return ((number, refusal(error, "the sample")),)
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
        if self._to_retry:
            number, command = self._to_retry.popleft()
            yield from self._begin((number,), [command])
            return
        work = self._scheduler.next_training()
        if isinstance(work, Passes):
            yield from self._start(work)
        elif isinstance(work.command, ReverseKL):
            yield from self._start_distillation(work.number, work.command)
        elif isinstance(work.command, Snapshot):
            yield from self._snapshot(work.number, work.command)
        else:
            yield self._single(work)

    # --- passes ---------------------------------------------------------------------------------------------

    def _start(self, work: Passes) -> Iterator[Answer]:
        """Begin a batch of passes; those whose run is gone are refused and leave the others alone."""
        members = []
        for number, command in work.members:
            if self._trainer.has(command.run_id):
                members.append((number, command))
            else:
                yield from self._settle(number, NotFoundError(f"run {command.run_id} is not loaded"))
        if members:
            numbers, commands = zip(*members, strict=True)
            yield from self._begin(numbers, commands)

    def _begin(self, numbers: tuple[int, ...], commands: Sequence[ForwardBackward]) -> Iterator[Answer]:
        try:
            self._passes = numbers, self._trainer.start(commands)
        except FATAL:
            raise
        except Exception as error:
            yield from self._retry_alone(numbers, commands, error)
        else:
            yield from self._advance()

    def _start_distillation(self, number: int, command: ReverseKL) -> Iterator[Answer]:
        try:
            reference = self._revisions.get(command.reference) if command.reference else None
            self._passes = (number,), self._trainer.distill(command, reference)
        except FATAL:
            raise
        except Exception as error:
            yield from self._retry_alone((number,), [command], error)
        else:
            yield from self._advance()

    def _settle(self, number: int, result: Result | MintError) -> Iterator[Answer]:
        """A pass has its result; that of a `TrainStep` waits for its other half."""
        if number not in self._first_halves:
            yield number, result
        else:
            assert isinstance(result, Passed | MintError)
            self._first_halves[number] = result

    def _advance(self) -> Iterator[Answer]:
        """One micro-batch. A batch that fails is undone, and its passes run one by one to find the one at fault."""
        assert self._passes is not None
        numbers, execution = self._passes
        try:
            execution.advance()
        except FATAL:
            raise
        except Exception as error:
            execution.undo()
            self._passes = None
            traceback.clear_frames(error.__traceback__)  # they hold the batch's activations
            yield from self._retry_alone(numbers, execution.passes, error)
            return
        if execution.done:
            self._passes = None
            results: Sequence[Passed | Distilled] = execution.results()
            for number, result in zip(numbers, results, strict=True):
                yield from self._settle(number, result)

    def _retry_alone(
        self, numbers: tuple[int, ...], passes: Sequence[ForwardBackward | ReverseKL], error: Exception
    ) -> Iterator[Answer]:
        if len(numbers) == 1:
            yield from self._settle(numbers[0], refusal(error, "the pass"))
            return
        for number, command in zip(numbers, passes, strict=True):
            assert isinstance(command, ForwardBackward), "a distillation runs alone"
            self._to_retry.append((number, command))

    # --- everything else ------------------------------------------------------------------------------------

    def _single(self, work: Single) -> Answer:
        try:
            if work.number in self._first_halves:
                return work.number, self._second_half(self._first_halves.pop(work.number), work.command)
            return work.number, self._execute(work.command)
        except FATAL:
            raise
        except Exception as error:
            return work.number, refusal(error, type(work.command).__name__)

    def _snapshot(self, number: int, command: Snapshot) -> Iterator[Answer]:
        """Copy the state now; write it, and answer, beside what comes next."""
        try:
            write = self._trainer.snapshot(command.run_id)
        except FATAL:
            raise
        except Exception as error:
            yield number, refusal(error, "the snapshot")
        else:
            self._files.submit(self._write, number, command.directory, write)

    def _write(self, number: int, directory: Path, write: Callable[[Path], None]) -> None:
        """Beside the steps, in the thread for files."""
        answer: Saved | MintError
        try:
            answer = write_folder(directory, write)
        except Exception as error:
            answer = refusal(error, "what was not written")
        self._deliver((number, answer))

    def _write_sum(self, command: Interpolate, directory: Path) -> None:
        save_adapter(interpolate(command.sources, self._sites), directory, self._name)

    def _second_half(self, first: Passed | MintError | None, command: TrainingCommand) -> Passed:
        """The optimizer step of a `TrainStep`, unless its pass has failed."""
        assert isinstance(command, OptimStep)
        if isinstance(first, MintError):
            raise first
        assert first is not None, "a step before its pass"
        step = self._trainer.step(command.run_id, command.adam)
        return replace(first, metrics=first.metrics | {f"optim/{name}:unique": value for name, value in step.items()})

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
                return write_folder(directory, trainer.saver(run_id))
            case ExportRevision(run_id, directory, key):
                saved = write_folder(directory, partial(trainer.export, run_id))
                self._keep_revision(run_id, key)
                return saved
            case UnloadRun(run_id):
                trainer.unload(run_id)
                return Unloaded()
            case ForwardBackward() | ReverseKL() | TrainStep() | Snapshot():
                raise AssertionError("they have ways of their own")

    def _keep_revision(self, run_id: str, key: str) -> None:
        """What was exported is likely to be sampled next: keep a copy, which no further step touches."""
        live = self._trainer.run(run_id).adapter
        self._revisions.put(key, Adapter(live.layout, live.flat.clone()))
