"""Workers, a fleet and a journal in memory, moved by hand: what happens when is the test's to say."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np

from mint.dispatch.streams import History
from mint.dispatch.tickets import Ticket
from mint.engine.core import (
    AdamParams,
    Command,
    CreateRun,
    Distilled,
    ExportRevision,
    ForwardBackward,
    Interpolate,
    LoadState,
    LoraShape,
    LoraSite,
    ModelInfo,
    OnProgress,
    OptimStep,
    Passed,
    Progress,
    PromptAnswer,
    PromptQuery,
    RestoreRun,
    Result,
    ReverseKL,
    RunReady,
    Sample,
    Sampled,
    SampledSequence,
    Saved,
    SaveState,
    Snapshot,
    Stepped,
    TopLogprobs,
    TrainStep,
    Unloaded,
    UnloadRun,
    WorkerDiedError,
)
from mint.engine.files import fresh_folder
from mint.errors import MintError

MODEL = "base"
INFO = ModelInfo(
    name=MODEL,
    tokenizer="/nowhere",
    architecture="Fake",
    vocab_size=100,
    max_context_length=64,
    max_sample_length=64,
    stop_token_ids=(2,),
    max_lora_rank=32,
    num_parameters=1,
    lora_sites=(
        LoraSite("model.layers.0.q_proj", "attn", 4, 6),
        LoraSite("model.layers.0.k_proj", "attn", 4, 2),
        LoraSite("model.layers.0.up_proj", "mlp", 4, 8),
        LoraSite("lm_head", "unembed", 4, 100),
    ),
)


class FakeClock:
    """Timers of the running loop, which run out when `advance` is called."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, Callable[[], object], asyncio.Event]] = []
        asyncio.get_running_loop().call_later = self._call_later  # type: ignore[method-assign]

    def advance(self, seconds: float) -> None:
        self._now += seconds
        due = [timer for timer in self._timers if timer[0] <= self._now]
        self._timers = [timer for timer in self._timers if timer[0] > self._now]
        for _, callback, cancelled in sorted(due, key=lambda timer: timer[0]):
            if not cancelled.is_set():
                callback()

    def _call_later(self, delay: float, callback: Callable[[], object]) -> Handle:
        handle = Handle()
        self._timers.append((self._now + delay, callback, handle.cancelled))
        return handle


class Handle:
    """Of a timer."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class FakeWorker:
    """A worker that executes what it was sent when `work` is called; a run's state is the commands that made it."""

    snapshots: ClassVar[dict[Path, list[Command]]] = {}

    def __init__(self, info: ModelInfo = INFO, deadly: Callable[[Command], bool] = lambda _: False) -> None:
        self.info = info
        self.died = asyncio.Event()
        self.runs: dict[str, list[Command]] = {}
        self.executed: list[Command] = []
        self.cancelled: list[Command] = []
        self._deadly = deadly
        self._prompts: list[list[int]] = []
        self._inbox: deque[tuple[Command, asyncio.Future[Result]]] = deque()
        self._listeners: list[OnProgress] = []
        self.refused: Callable[[Command], MintError | None] = lambda _: None

    def execute(self, command: Command, on_progress: OnProgress | None = None) -> asyncio.Future[Result]:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self.died.is_set():
            answer.set_exception(WorkerDiedError())
        else:
            self._inbox.append((command, answer))
            self._listeners += [on_progress] if on_progress is not None else []
            answer.add_done_callback(lambda done: self._cancel(command) if done.cancelled() else None)
        return answer

    def _cancel(self, command: Command) -> None:
        self._inbox = deque(entry for entry in self._inbox if entry[0] is not command)
        self.cancelled.append(command)

    def tell(self, progress: Progress) -> None:
        """To whoever sent something to be streamed."""
        for listener in self._listeners:
            listener(progress)

    @property
    def answers(self) -> list[asyncio.Future[Result]]:
        """Of the backlog."""
        return [answer for _, answer in self._inbox]

    @property
    def backlog(self) -> list[Command]:
        return [command for command, _ in self._inbox]

    def work(self) -> bool:
        """Execute the next command; False if there is none."""
        if not self._inbox:
            return False
        if any(self._deadly(command) for command in self._batch()):
            self.die()
            return False
        command, answer = self._inbox.popleft()
        self.executed.append(command)
        outcome = self.refused(command) or self._execute(command)
        if not answer.done():
            if isinstance(outcome, MintError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
        return True

    def _batch(self) -> Iterable[Command]:
        """What a real worker would have in hand at once: all samples, and of each run what comes first."""
        return {getattr(command, "run_id", id(command)): command for command in reversed(self.backlog)}.values()

    def die(self) -> None:
        self.died.set()
        for _, answer in self._inbox:
            if not answer.done():
                answer.set_exception(WorkerDiedError())
                answer.exception()
        self._inbox.clear()

    async def close(self) -> None:
        self.die()

    def _execute(self, command: Command) -> Result | MintError:
        if isinstance(command, Sample):
            cached = command.prompt.tolist() in self._prompts
            self._prompts.append(command.prompt.tolist())
            return replace(_sampled(command), cached_tokens=len(command.prompt) - 1 if cached else 0)
        if isinstance(command, RestoreRun) and command.directory in self.snapshots:
            self.runs[command.run_id] = list(self.snapshots[command.directory])
            return RunReady(LoraShape(4, 0))
        if isinstance(command, CreateRun | RestoreRun):
            self.runs[command.run_id] = [command]
            return RunReady(command.lora if isinstance(command, CreateRun) else LoraShape(4, 0))
        if isinstance(command, Interpolate):
            fresh_folder(command.directory)
            sources = [(source.directory.name, source.coefficient) for source in command.sources]
            (command.directory / "weights").write_text(repr(sources))
            return Saved(1)
        if command.run_id not in self.runs:
            return MintError(f"run {command.run_id} is not loaded")
        if isinstance(command, UnloadRun):
            del self.runs[command.run_id]
            return Unloaded()
        if isinstance(command, Snapshot):
            if command.directory.is_absolute():
                fresh_folder(command.directory)
            self.snapshots[command.directory] = list(self.runs[command.run_id])
            return Saved(1)
        if isinstance(command, SaveState | ExportRevision):
            fresh_folder(command.directory)
            (command.directory / "weights").write_text(repr(len(self.runs[command.run_id])))
            return Saved(1)
        if isinstance(command, ForwardBackward) and command.forward_only:
            return self._passed(command)
        self.runs[command.run_id].append(command)
        if isinstance(command, ForwardBackward):
            return self._passed(command)
        if isinstance(command, TrainStep):
            passed = self._passed(command.forward_backward)
            return replace(passed, metrics=passed.metrics | {"optim/grad_norm:unique": 1.0})
        if isinstance(command, ReverseKL):
            losses = tuple(float(datum.weights.sum()) for datum in command.data)
            return Distilled(losses, {"loss:sum": sum(losses)})
        if isinstance(command, LoadState):
            return RunReady(LoraShape(4, 0))
        assert isinstance(command, OptimStep)
        return Stepped({"step": float(len(self.runs[command.run_id]) - 1)})

    def _passed(self, command: ForwardBackward) -> Passed:
        """The log-probabilities tell how much has happened to the run."""
        value = -float(len(self.runs[command.run_id]))
        logprobs = tuple(np.full(len(datum.tokens), value, np.float32) for datum in command.data)
        return Passed(logprobs, {"loss:sum": -value})


def _sampled(command: Sample) -> Sampled:
    tokens = np.arange(command.params.max_tokens, dtype=np.int32) % 90 + 3
    top = _likeliest(len(tokens), command.top_logprobs) if command.top_logprobs else None
    sequence = SampledSequence(tokens, np.full(len(tokens), -0.5, np.float32), "length", top)
    return Sampled((sequence,) * command.num_samples, _answered(command.query, len(command.prompt)))


def _answered(query: PromptQuery, length: int) -> PromptAnswer:
    """A log-probability of −1 for every token of the prompt, and −id / 8 for every other that is asked for."""
    unasked = length - query.last
    logprobs = np.full(length, -1, np.float32)
    logprobs[:unasked] = np.nan
    top = _likeliest(length, query.top)
    top.tokens[:unasked], top.logprobs[:unasked] = -1, -np.inf
    targets = query.targets
    if targets is not None:
        targets = np.where(targets < 0, np.nan, targets / -8).astype(np.float32)
    return PromptAnswer(
        logprobs=logprobs if query.last else None,
        top=top if query.top else None,
        targets=targets,
        alternatives=_likeliest(length - 1, query.alternatives) if query.alternatives else None,
    )


def _likeliest(positions: int, count: int) -> TopLogprobs:
    """The same at every position: 1, 2, …"""
    tokens = np.tile(np.arange(1, count + 1, dtype=np.int32), (positions, 1))
    return TopLogprobs(tokens, (tokens / -8).astype(np.float32))


class FakeFleet:
    """One model's place; the next worker comes when `start` is called."""

    def __init__(self, deadly: Callable[[Command], bool] = lambda _: False) -> None:
        self.on_death: Callable[[str], None] = lambda _model: None
        self.current: FakeWorker | None = None
        self.deaths = 0
        self._deadly = deadly
        self._suspects = asyncio.Lock()
        self._changed = asyncio.Event()

    async def worker(self, _name: str) -> FakeWorker:
        while self.current is None:
            self._changed.clear()
            await self._changed.wait()
        return self.current

    def suspects(self, _name: str) -> asyncio.Lock:
        return self._suspects

    def start(self) -> FakeWorker:
        self.current = FakeWorker(deadly=self._deadly)
        self._changed.set()
        return self.current

    def kill(self) -> None:
        if self.current is not None:
            self.current.die()
            self.bury()

    def bury(self) -> None:
        """What the supervisor does once a worker has died."""
        assert self.current is not None
        self.current = None
        self.deaths += 1
        self.on_death(MODEL)


@dataclass
class FakeJournal:
    """Finished operations of one run; `writes_slowly` makes a result take some turns of the loop to be written."""

    run_id: str = "run"
    writes_slowly: int = 0
    done: dict[int, Command] = field(default_factory=dict)
    outcomes: dict[int, Result | MintError] = field(default_factory=dict)
    finishes: Counter[int] = field(default_factory=Counter)
    histories: list[History] = field(default_factory=list)
    snapshot: tuple[int, Path] | None = None
    waiters: defaultdict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    _numbers: count[int] = field(default_factory=count)

    def ticket(self, seq_id: int, command: Command | None = None) -> Ticket:
        if command is None:
            command = step(seq_id, self.run_id) if seq_id else CreateRun(self.run_id, LoraShape(4, 0))
        wanted = command

        async def finish(outcome: Result | MintError) -> None:
            for _ in range(self.writes_slowly):
                await asyncio.sleep(0)
            self.finishes[seq_id] += 1
            self.outcomes[seq_id] = outcome
            if not isinstance(outcome, MintError):
                self.done[seq_id] = wanted
            self.waiters[seq_id].set()

        return Ticket(f"req-{next(self._numbers)}", seq_id, MODEL, command, finish)

    async def history(self, run_id: str) -> History:
        assert run_id == self.run_id
        await asyncio.sleep(0)
        start, commands = -1, []
        if self.snapshot is not None:
            start, folder = self.snapshot
            commands = [RestoreRun(run_id, folder, with_optimizer=True)]
        following = next(number for number in count(max(self.done, default=start) + 1) if number not in self.outcomes)
        commands += [self.done[number] for number in sorted(self.done) if number > start]
        self.histories.append(History(following, tuple(commands)))
        return self.histories[-1]

    def snapshot_folder(self, run_id: str, seq_id: int) -> Path:
        return Path(run_id) / str(seq_id)

    async def commit_snapshot(self, run_id: str, seq_id: int, folder: Path, size_bytes: int) -> None:
        assert size_bytes
        assert all(number in self.outcomes for number in range(seq_id + 1)), "a result is missing"
        self.snapshot = seq_id, folder


def step(number: int, run_id: str = "run") -> OptimStep:
    """An operation that can be told from others."""
    return OptimStep(run_id, AdamParams(learning_rate=float(number)))


async def settle() -> None:
    """Let everything happen that can happen without the worker."""
    for _ in range(30):
        await asyncio.sleep(0)


async def work_off(fleet: FakeFleet) -> None:
    """Let the worker do all it has, and what follows from it."""
    await settle()
    while fleet.current is not None and fleet.current.work():
        await settle()
    if fleet.current is not None and fleet.current.died.is_set():
        fleet.bury()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene, within a time that only what hangs takes."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(bounded())
