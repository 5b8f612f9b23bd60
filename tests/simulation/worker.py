"""An engine worker in memory, which can die at any moment, also while it writes a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mint.config import EngineConfig, ModelSource
from mint.engine.core import (
    Command,
    CreateRun,
    ExportRevision,
    ForwardBackward,
    LoadState,
    LoraShape,
    ModelInfo,
    OnProgress,
    OptimStep,
    RestoreRun,
    Result,
    RunReady,
    Sample,
    Sampled,
    Saved,
    SaveState,
    Snapshot,
    TrainStep,
    Unloaded,
    UnloadRun,
    WorkerDiedError,
)
from mint.engine.files import fresh_folder
from mint.errors import BadRequestError, MintError
from tests.dispatch.fakes import INFO
from tests.simulation.arithmetic import DEADLY_RATE, State, draw, fresh, loaded
from tests.simulation.world import World

SHAPE = LoraShape(4, 0)


class SimulatedWorker:
    """As `LocalWorker`: what it was sent of one run it does in order, runs and samples in any."""

    def __init__(self, world: World, source: ModelSource) -> None:
        self.died = asyncio.Event()
        self.runs: dict[str, State] = {}
        self.info: ModelInfo = replace(INFO, name=source.name)
        self._world = world
        self._gone = False
        self._queue: list[tuple[Command, asyncio.Future[Result]]] = []
        self._answers: set[asyncio.Future[Result]] = set()
        self._channel = 0.0
        self._arrived = asyncio.Event()
        self._writing: set[Callable[[], None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._work())

    @classmethod
    async def start(cls, world: World, source: ModelSource, _config: EngineConfig) -> SimulatedWorker:
        await asyncio.sleep(world.random.uniform(0.05, 0.5))
        if world.server is not None and world.strikes("start", 0.5):
            raise WorkerDiedError("the worker ended while it loaded the model")
        world.worker = cls(world, source)
        return world.worker

    @property
    def alive(self) -> bool:
        return not self._gone

    @property
    def resting(self) -> bool:
        """Whether it has done all that it was sent."""
        return not (self._gone or self._answers)

    def execute(self, command: Command, on_progress: OnProgress | None = None) -> asyncio.Future[Result]:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self._gone:
            answer.set_exception(WorkerDiedError("the worker has ended"))
            return answer
        self._world.trace("worker gets", command)
        self._queue.append((command, answer))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        self._arrived.set()
        return answer

    async def close(self) -> None:
        self.die("is closed")
        await self.died.wait()

    def die(self, why: str) -> None:
        """What it has not said by now is never known. That it is dead shows a little later than that it is silent."""
        if not self._gone:
            self._gone = True
            self._world.trace("worker", why)
            for task in self._tasks:
                task.cancel()
            asyncio.get_running_loop().call_later(self._world.random.random() * 0.01, self._bury)

    def _bury(self) -> None:
        self.died.set()
        for answer in list(self._answers):
            if not answer.done():
                answer.set_exception(WorkerDiedError("the worker has ended"))
                answer.exception()

    def orphaned(self) -> None:
        """Its server was killed: it ends, and may finish the file that it was writing."""
        for write in self._writing:
            if self._world.random.random() < 0.5:
                write()

    # --- its one loop ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            self._queue = [entry for entry in self._queue if not entry[1].cancelled()]
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await asyncio.sleep(self._world.random.random() * 0.02)
            await self._do_one()

    async def _do_one(self) -> None:
        heads = {getattr(entry[0], "run_id", id(entry)): entry for entry in reversed(self._queue)}
        command, answer = entry = self._world.random.choice(list(heads.values()))
        self._queue = [other for other in self._queue if other is not entry]
        if self._world.strikes("worker") or _is_deadly(command):
            self.die(f"dies before {type(command).__name__}")
            return
        try:
            outcome: Result | MintError | None = await self._execute(command, answer)
        except MintError as error:
            outcome = error
        if self._world.strikes("worker"):
            self.die(f"dies after {type(command).__name__}")
        elif outcome is not None:
            self._deliver(answer, outcome)

    def _deliver(self, answer: asyncio.Future[Result], outcome: Result | MintError) -> None:
        """Answers come in the order in which they were given, after a while."""
        loop = asyncio.get_running_loop()
        self._channel = max(self._channel + 1e-6, loop.time() + self._world.random.random() * 0.01)
        loop.call_at(self._channel, self._settle, answer, outcome)

    def _settle(self, answer: asyncio.Future[Result], outcome: Result | MintError) -> None:
        if self._gone or answer.done():
            return
        self._world.point("worker answers")
        if isinstance(outcome, MintError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    async def _execute(self, command: Command, answer: asyncio.Future[Result]) -> Result | None:
        match command:
            case Sample():
                return self._sampled(command)
            case CreateRun(run_id, lora):
                self.runs[run_id] = fresh(lora.seed)
            case RestoreRun(run_id, directory, with_optimizer):
                self.runs[run_id] = loaded(read_state(directory), with_optimizer=with_optimizer)
            case LoadState(run_id, directory, with_optimizer):
                self._run(run_id)
                self.runs[run_id] = loaded(read_state(directory), with_optimizer=with_optimizer)
            case UnloadRun(run_id):
                self._run(run_id)
                del self.runs[run_id]
                return Unloaded()
            case SaveState(run_id, directory):
                return await self._write(directory, self._run(run_id).saved())
            case ExportRevision(run_id, directory):
                return await self._write(directory, self._run(run_id).exported())
            case Snapshot(run_id, directory):
                if self._run(run_id).gradients:
                    raise MintError(f"run {run_id} has gradients, which a snapshot would lose")
                self._begin(self._snapshot(directory, self._run(run_id).saved(), answer))
                return None
            case _:
                return train(self._run(command.run_id), command)
        return RunReady(SHAPE)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._gone:
            self._world.faults.append(f"in the worker: {error!r}")
            self._world.trace(self._world.faults[-1])

    def _run(self, run_id: str) -> State:
        if run_id not in self.runs:
            raise MintError(f"run {run_id} is not loaded")
        return self.runs[run_id]

    def _sampled(self, command: Sample) -> Sampled:
        weights = read_state(command.revision.directory).weights if command.revision is not None else None
        params = command.params
        sequence = draw(weights, command.prompt, params.seed, params.max_tokens)
        return Sampled((sequence,) * command.num_samples)

    async def _snapshot(self, directory: Path, state: State, answer: asyncio.Future[Result]) -> None:
        await asyncio.sleep(self._world.random.random() * 0.05)
        self._deliver(answer, await self._write(directory, state))

    async def _write(self, directory: Path, state: State) -> Saved:
        fresh_folder(directory)
        (directory / "half").touch()
        write = partial(write_state, directory, state)
        self._writing.add(write)
        await asyncio.sleep(self._world.random.random() * 0.02)
        self._writing.discard(write)
        if self._world.strikes("worker"):
            self.die("dies while it writes")
            await asyncio.sleep(1)
        write()
        return Saved(1)


def _is_deadly(command: Command) -> bool:
    return isinstance(command, OptimStep) and command.adam.learning_rate == DEADLY_RATE


def train(state: State, command: Command) -> Result:
    """What changes a run, or looks at it."""
    match command:
        case ForwardBackward(data=data, forward_only=forward_only):
            return state.backward(data[0].tokens, forward_only=forward_only)
        case OptimStep(adam=adam):
            return state.step(adam)
        case TrainStep(forward_backward, adam):
            passed = state.backward(forward_backward.data[0].tokens)
            stepped = state.step(adam)
            return replace(passed, metrics=passed.metrics | stepped.metrics)
    raise AssertionError(command)


def write_state(directory: Path, state: State) -> None:
    (directory / "state.json").write_text(json.dumps(asdict(state)))
    (directory / "half").unlink(missing_ok=True)


def read_state(directory: Path) -> State:
    """As the engine does it: whatever is wrong with the files is an error of the request."""
    try:
        return State(**json.loads((directory / "state.json").read_text()))
    except OSError as error:
        raise BadRequestError(f"{directory.name} cannot be read: {error}") from None
