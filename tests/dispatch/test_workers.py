"""Worker processes and their supervision, mostly with a small program in the place of the engine."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import uvloop

from mint.config import EngineConfig, ModelSource
from mint.dispatch import fleet as fleet_module
from mint.dispatch import local_worker
from mint.dispatch.fleet import Fleet
from mint.dispatch.local_worker import LocalWorker
from mint.engine.core import Progress, Sample, Sampled, SamplingParams, Unloaded, UnloadRun, WorkerDiedError
from mint.errors import BadRequestError, ModelLoadError
from mint.tiny import NAME, model_path

PROGRAM = """
    import os, socket, sys, time

    if "dies-unread" in sys.argv[0]:
        sys.exit(3)
    from mint.engine import channel
    from mint.engine.core import ModelInfo, Unloaded
    from mint.errors import BadRequestError, ModelLoadError
    connection = socket.socket(fileno=int(sys.argv[-1]))
    source, config = channel.receive(connection)
    if source.location == "dies":
        sys.exit(3)
    if source.location == "refuses":
        connection.sendall(channel.encode(ModelLoadError("there is no such model")))
        sys.exit()
    connection.sendall(channel.encode(ModelInfo(source.name, "/", "Fake", 9, 9, 9, (), 9, 9)))
    while True:
        try:
            number, command = channel.receive(connection)
        except EOFError:
            if source.location == "hangs":
                time.sleep(60)
            break
        if command.run_id == "die":
            os._exit(9)
        if command.run_id == "close":
            connection.close()
            time.sleep(0.3)
            os._exit(9)
        if command.run_id == "garbage":
            connection.sendall(channel.HEADER.pack(3) + b"???")
            continue
        answer = BadRequestError("no", field="f") if command.run_id == "bad" else Unloaded()
        connection.sendall(channel.encode((number, answer)))
"""
CONFIG = EngineConfig()
INTERPRETER = sys.executable


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scene()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that runs our program, whatever it is told to run."""
    script = tmp_path / "engine"
    script.write_text(f"#!{sys.executable} -S\nimport sys\nsys.path[:0] = {sys.path!r}\n" + textwrap.dedent(PROGRAM))
    script.chmod(0o700)
    monkeypatch.setattr(local_worker.sys, "executable", str(script))
    return script


def test_commands_are_answered_under_their_numbers() -> None:
    async def scene() -> None:
        worker = await LocalWorker.start(ModelSource("name", "works"), CONFIG)
        assert worker.info.name == "name"
        good, bad, again = (worker.execute(UnloadRun(name)) for name in ("good", "bad", "good"))
        assert await good == await again == Unloaded()
        with pytest.raises(BadRequestError, match="f: no"):
            await bad
        await worker.close()
        assert worker.died.is_set()
        assert not psutil.pid_exists(worker.pid)

    play(scene)


@pytest.mark.parametrize("last", ["die", "garbage"])
def test_an_end_fails_what_is_open_and_what_comes_after(last: str) -> None:
    async def scene() -> None:
        # an answer that cannot be read is an error of ours, which the loop reports
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        worker = await LocalWorker.start(ModelSource("name", "works"), CONFIG)
        open_ones = [worker.execute(UnloadRun(name)) for name in ("good", last, "good", "good")]
        await asyncio.wait(open_ones[1:2])
        late = worker.execute(UnloadRun("good"))
        assert await open_ones[0] == Unloaded()
        for answer in (*open_ones[1:], late):
            with pytest.raises(WorkerDiedError):
                await answer
        await worker.died.wait()
        while psutil.pid_exists(worker.pid):
            await asyncio.sleep(0.01)

    play(scene)


def test_commands_to_a_worker_that_is_just_ending() -> None:
    """Its socket is closed, and it has not ended: the event loop refuses to write, and nobody is given it."""

    async def scene() -> None:
        fleet = Fleet([ModelSource("one", "works")], CONFIG)
        await fleet.start()
        first = await fleet.worker("one")
        first.execute(UnloadRun("close"))
        refused = 0
        while not first.died.is_set():
            answer = first.execute(UnloadRun("good"))
            await asyncio.sleep(0.01)
            refused += answer.done() and not first.died.is_set()
        assert refused > 0
        assert await (await fleet.worker("one")).execute(UnloadRun("good")) == Unloaded()
        await fleet.close()

    play(scene)


@pytest.mark.parametrize("location", ["dies", "dies-unread"])
def test_an_end_while_loading_is_told(location: str, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker.sys, "executable", str(engine.rename(engine.with_name(location))))

    async def scene() -> None:
        with pytest.raises(WorkerDiedError, match="code 3 while it loaded"):
            await LocalWorker.start(ModelSource("name", location), CONFIG)

    play(scene)


def test_a_model_that_is_not_there_is_told() -> None:
    async def scene() -> None:
        fleet = Fleet([ModelSource("name", "refuses")], CONFIG)
        with pytest.raises(ModelLoadError, match="no such model"):
            await fleet.start()
        await fleet.close()

    play(scene)


def test_a_worker_that_hangs_is_killed_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker, "CLOSE_SECONDS", 0.1)

    async def scene() -> None:
        worker = await LocalWorker.start(ModelSource("name", "hangs"), CONFIG)
        await worker.close()
        assert not psutil.pid_exists(worker.pid)

    play(scene)


def test_a_dead_worker_is_replaced_and_its_death_announced() -> None:
    async def scene() -> None:
        deaths: list[str] = []
        fleet = Fleet([ModelSource("one", "works"), ModelSource("two", "works")], CONFIG)
        await fleet.start()
        fleet.on_death = deaths.append
        assert fleet.ready
        assert [info.name for info in fleet.models()] == ["one", "two"]
        first = await fleet.worker("one")
        with pytest.raises(WorkerDiedError):
            await first.execute(UnloadRun("die"))
        # from here on nobody is given the dead one, whether or not its death has been announced
        second = await fleet.worker("one")
        assert second is not first
        assert await second.execute(UnloadRun("good")) == Unloaded()
        assert deaths == ["one"]
        assert fleet.model("one") is not None
        await fleet.close()
        assert not fleet.ready

    play(scene)


def test_a_worker_that_does_not_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        fleet = Fleet([ModelSource("one", "works")], CONFIG)
        await fleet.start()
        start, failures = LocalWorker.start, [OSError("no more processes"), WorkerDiedError("ended")]

        async def failing(source: ModelSource, config: EngineConfig) -> LocalWorker:
            if failures:
                raise failures.pop()
            return await start(source, config)

        monkeypatch.setattr(fleet_module.LocalWorker, "start", failing)
        monkeypatch.setattr(fleet_module, "LONGEST_PAUSE", 0.01)
        with pytest.raises(WorkerDiedError):
            await (await fleet.worker("one")).execute(UnloadRun("die"))
        assert await (await fleet.worker("one")).execute(UnloadRun("good")) == Unloaded()
        assert not failures
        await fleet.close()

    play(scene)


# ---------------------------------------------------------------- a real engine


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """The built-in model, and the engine that computes it."""
    monkeypatch.setattr(local_worker.sys, "executable", INTERPRETER)
    return ModelSource(NAME, str(model_path()))


def sample(seed: int, max_tokens: int = 24, top_logprobs: int = 0) -> Sample:
    prompt = np.arange(5, 17, dtype=np.int32)
    return Sample(None, prompt, 2, SamplingParams(max_tokens, seed), top_logprobs=top_logprobs, stream=True)


def test_what_a_stream_tells_adds_up_to_its_answer(tiny: ModelSource) -> None:
    async def scene() -> None:
        worker = await LocalWorker.start(tiny, CONFIG)
        told: dict[int, list[Progress]] = {0: [], 1: []}
        answers = [worker.execute(sample(seed, top_logprobs=2), told[seed].append) for seed in told]
        unheard = worker.execute(sample(0, top_logprobs=2))
        for seed, answer in enumerate(answers):
            sampled = await answer
            assert isinstance(sampled, Sampled)
            assert len(told[seed]) > 1
            for index, sequence in enumerate(sampled.sequences):
                pieces = [progress.drawn[index] for progress in told[seed] if index in progress.drawn]
                assert np.concatenate([tokens for tokens, _, _ in pieces]).tolist() == sequence.tokens.tolist()
                assert np.concatenate([logprobs for _, logprobs, _ in pieces]).tolist() == sequence.logprobs.tolist()
                assert sequence.top is not None
                tops = [top.tokens for _, _, top in pieces if top is not None]
                assert np.concatenate(tops).tolist() == sequence.top.tokens.tolist()
        first, again = await answers[0], await unheard
        assert isinstance(first, Sampled)
        assert isinstance(again, Sampled)
        assert [each.tokens.tolist() for each in again.sequences] == [each.tokens.tolist() for each in first.sequences]
        assert not worker._listeners
        await worker.close()

    play(scene)


def test_a_sample_that_is_cancelled_ends_and_others_go_on(tiny: ModelSource) -> None:
    """There is room for one at a time, so that the next starts when the cancelled one has let go of its place."""

    async def scene() -> None:
        worker = await LocalWorker.start(tiny, EngineConfig(max_decode_batch=2))
        length = worker.info.max_sample_length - 12
        started = time.monotonic()
        await worker.execute(sample(2))
        seconds = time.monotonic() - started
        drawing = asyncio.Event()
        told: list[Progress] = []

        def hear(progress: Progress) -> None:
            told.append(progress)
            drawing.set()

        endless = worker.execute(sample(1, length), hear)
        after = worker.execute(sample(2))
        await drawing.wait()
        endless.cancel()
        async with asyncio.timeout(20 * seconds):  # to its end the first would take four times that
            assert isinstance(await after, Sampled)
        assert sum(len(tokens) for each in told for tokens, _, _ in each.drawn.values()) < length
        heard = len(told)
        # what was on its way when it was cancelled is heard by nobody, and an answer comes to nobody
        assert await worker.execute(UnloadRun("nobody")) == Unloaded()
        assert len(told) == heard
        assert endless.cancelled()
        # and those that have not begun, or have ended
        waiting = [worker.execute(sample(seed)) for seed in range(3)]
        assert all(answer.cancel() for answer in waiting)
        assert not after.cancel()
        assert isinstance(await worker.execute(sample(1, 3)), Sampled)
        assert not worker._answers
        assert not worker._listeners
        await worker.close()

    play(scene)
