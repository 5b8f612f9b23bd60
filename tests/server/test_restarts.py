"""A server that was stopped or killed goes on where it was: from its journal."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select

from mint.engine.core import CreateRun, ForwardBackward, OptimStep, RestoreRun, Sample, SaveState, Snapshot
from mint.errors import NotFoundError
from mint.store import files, repository
from mint.store.schema import RunSnapshot, operations
from tests.dispatch.fakes import FakeWorker

from .inprocess import ON_BOTH, Serve, World, datum, play


def killed(folder: Path) -> Path:
    """What a process that is killed now would leave behind."""
    return Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-killed"), symlinks=True))


def kinds(world: World, run: str) -> list[str]:
    return [type(command).__name__ for command in world.worker.runs[run]]


def test_what_was_acknowledged_is_carried_out_by_the_next_process(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, sampler = await world.alice.run(), await world.alice.sampler()
            await world.alice.pass_(run, 1)
            await world.alice.step(run, 2)
            world.worker.paused = True
            futures = [
                (await world.alice.pass_(run, 3)).json(),
                await world.alice.ok("optim_step", {"model_id": run, "seq_id": 4}),
                await world.alice.ok("save_weights", {"model_id": run, "seq_id": 5, "path": "a"}),
                await world.alice.ok("optim_step", {"model_id": run, "seq_id": 6}),
            ]
            body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}}
            sample = await world.alice.ok("asample", {**body, "sampling_session_id": sampler, "seq_id": 0})
            folder = killed(tmp_path / "data")
        async with serve(folder) as world:
            results = [await world.alice.retrieve(future["request_id"]) for future in futures]
            assert [next(iter(result)) for result in results] == ["loss_fn_output_type", "metrics", "path", "metrics"]
            assert results[3] == {"metrics": {"step": 5.0}}
            drawn = await world.alice.retrieve(sample["request_id"])
            assert drawn["sequences"][0]["tokens"] == [3, 4]
            assert kinds(world, run) == ["CreateRun", *["ForwardBackward", "OptimStep"] * 2, "OptimStep"]
            # a retry of what the last process took is a retry
            again = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 6})
            assert again["request_id"] == futures[3]["request_id"]
            assert await world.alice.step(run, 7) == {"metrics": {"step": 6.0}}
            assert world.worker.times(OptimStep) == 4
            assert world.worker.times(SaveState) == 1

    play(scene)


def test_a_sample_without_a_seed_is_the_same_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        seeds = set()
        async with serve(paused=True) as world:
            sampler = await world.alice.sampler()
            body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}}
            future = await world.alice.ok("asample", {**body, "sampling_session_id": sampler, "seq_id": 0})
            folder = killed(tmp_path / "data")
            world.worker.resume()
            await world.alice.retrieve(future["request_id"])
            seeds.add(world.worker.executed[0].params.seed)
        async with serve(folder) as world:
            await world.alice.retrieve(future["request_id"])
            seeds.add(world.worker.executed[0].params.seed)
        assert len(seeds) == 1

    play(scene)


@ON_BOTH
def test_a_run_comes_back_when_it_is_used_and_not_before(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            session = run.partition(":")[0]
        async with serve() as world:
            await world.alice.ok("session_heartbeat", {"session_id": session})
            assert (await world.alice.ok("get_info", {"model_id": run}))["lora_rank"] == 4
            assert world.worker.executed == []
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}
            assert world.worker.times(CreateRun) == 1

    play(scene)


@ON_BOTH
def test_a_finished_result_is_still_there(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            first = await world.alice.retrieve(future["request_id"])
        async with serve() as world:
            assert await world.alice.retrieve(future["request_id"]) == first
            assert world.worker.executed == []

    play(scene)


@ON_BOTH
def test_refused_and_missing_numbers_stay_so(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(gap_seconds=0.05) as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            await world.alice.step(run, 3)  # 2 never arrives
            assert (await world.alice.pass_(run, 4, datum([1000]))).status_code == 400
            response = await world.alice.post("save_weights", {"model_id": run, "seq_id": 5, "path": "a/b"})
            assert response.status_code == 422
        async with serve(gap_seconds=3600.0) as world:
            assert await world.alice.step(run, 6) == {"metrics": {"step": 3.0}}

    play(scene)


def test_numbers_that_were_waiting_for_one_that_is_missing(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            later = [(await world.alice.pass_(run, number)).json() for number in (3, 2)]
            assert (await world.alice.pass_(run, 4, datum([1000]))).status_code == 400
            folder = killed(tmp_path / "data")
        async with serve(folder) as world:
            await asyncio.sleep(0.05)
            assert world.worker.times(ForwardBackward) == 0
            first = (await world.alice.pass_(run, 1)).json()
            for future in (first, *later):
                assert "metrics" in await world.alice.retrieve(future["request_id"])
            passes = [command for command in world.worker.executed if isinstance(command, ForwardBackward)]
            assert len(passes) == 3
            assert await world.alice.step(run, 5) == {"metrics": {"step": 4.0}}

    play(scene)


@ON_BOTH
def test_only_what_changes_a_run_is_replayed(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.retrieve((await world.alice.pass_(run, 1, forward_only=True)).json()["request_id"])
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 2, "path": "a"})
            path = f"tinker://{run}/weights/a"
            await world.alice.result("load_weights", {"model_id": run, "seq_id": 3, "path": path})
            await world.alice.result("save_weights_for_sampler", {"model_id": run, "seq_id": 4, "path": "a"})
            await world.alice.step(run, 5)
        async with serve() as world:
            await world.alice.step(run, 6)
            executed = [type(command).__name__ for command in world.worker.executed]
            assert executed == ["CreateRun", "LoadState", "OptimStep", "OptimStep"]

    play(scene)


def test_a_run_from_a_checkpoint_outlives_the_name_of_the_checkpoint(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            path = f"tinker://{run}/weights/a"
            sampler = await world.alice.sampler(session, model_path=path)
            body = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": True}
            loaded = await world.alice.result("load_weights", body)
            copy = f"{session}:train:1"
            assert loaded == {"path": path, "model_id": copy, "type": "load_weights"}
            first = world.worker.runs[copy][0]
            await world.alice.step(run, 2)
            overwrite = {"model_id": run, "seq_id": 3, "path": "a", "overwrite": True}
            await world.alice.result("save_weights", overwrite)
        async with serve() as world:
            await world.alice.step(copy, 1)
            assert isinstance(first, RestoreRun)
            assert world.worker.runs[copy][0] == first
            assert (first.directory / "weights").read_text() == "1"
            body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_session_id": sampler}
            await world.alice.result("asample", {**body, "sampling_params": {"max_tokens": 1}})
            old, new = world.worker.executed[-1], await world.alice.sampler(session, 1, model_path=path)
            await world.alice.result(
                "asample", {**body, "sampling_session_id": new, "sampling_params": {"max_tokens": 1}}
            )
            for command, contents in ((old, "1"), (world.worker.executed[-1], "2")):
                assert isinstance(command, Sample)
                assert command.revision is not None
                assert (command.revision.directory / "weights").read_text() == contents

    play(scene)


def test_files_that_are_gone_fail_the_run_and_nothing_else(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, other = await world.alice.run(), await world.alice.run()
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            path = f"tinker://{run}/weights/a"
            await world.alice.result("load_weights", {"model_id": run, "seq_id": 2, "path": path})
            folder = killed(tmp_path / "data")
        shutil.rmtree(folder / "checkpoints")
        async with serve(folder) as world:
            assert "are gone" in (await world.alice.step(run, 3))["error"]
            assert "metrics" in await world.alice.step(other, 1)
            response = await world.alice.post("load_weights", {"model_id": other, "seq_id": 2, "path": path})
            assert (response.status_code, response.json()["type"]) == (404, NotFoundError.__name__)

    play(scene)


def test_a_kill_between_files_and_journal_is_mended(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has its final name, and nothing that says so was committed."""

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            folder = killed(tmp_path / "data")
        written = folder / "checkpoints" / f"{future['request_id']}.staged"
        written.mkdir(parents=True)
        (written / "weights").write_text("1")
        files.commit(folder / "checkpoints", future["request_id"])
        (folder / "checkpoints" / "req-of-a-save-that-failed.staged").mkdir()
        async with serve(folder) as world:
            path = (await world.alice.retrieve(future["request_id"]))["path"]
            while (left := {entry.name for entry in (folder / "checkpoints").iterdir()}) != {future["request_id"]}:
                assert left == {future["request_id"], "req-of-a-save-that-failed.staged"}
                await asyncio.sleep(0.01)
            await world.alice.sampler(model_path=path)

    play(scene)


@ON_BOTH
def test_a_stop_while_long_polls_are_open(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            poll = asyncio.create_task(world.alice.retrieve(future["request_id"]))
            await asyncio.sleep(0.05)
        poll.cancel()
        async with serve() as world:
            assert await world.alice.retrieve(future["request_id"]) == {"metrics": {"step": 1.0}}

    play(scene)


def test_what_lies_before_a_snapshot_is_not_computed_again(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(snapshot_seconds=0.0) as world:
            run = await world.alice.run()
            for number in range(1, 9, 2):
                await world.alice.pass_(run, number)
                await world.alice.step(run, number + 1)
            # the last of them, so that none is committed while this is read
            last = [command.directory.name for command in world.worker.executed if isinstance(command, Snapshot)][-1]
            while (snapshot := await snapshot_of(world, run)) is None or str(snapshot.seq_id) != last:
                await asyncio.sleep(0.01)
            kept = {number for number, payload in await payloads(world, run) if payload}
            assert kept == set(range(snapshot.seq_id + 1, 9))
            world.worker.paused = True
            state = kinds(world, run)
            future = (await world.alice.pass_(run, 9)).json()
            folder = killed(tmp_path / "data")
        # the fake worker's snapshots are in its memory, by their folder
        mine = {d: c for d, c in FakeWorker.snapshots.items() if d.is_relative_to(tmp_path)}
        for directory, commands in mine.items():
            FakeWorker.snapshots[folder / directory.relative_to(tmp_path / "data")] = commands
        async with serve(folder) as world:
            await world.alice.retrieve(future["request_id"])
            assert isinstance(world.worker.executed[0], RestoreRun)
            assert world.worker.times(OptimStep) == sum(number % 2 == 0 for number in kept)
            assert kinds(world, run)[: len(state)] == state
            first = (await world.alice.pass_(run, 3)).json()["request_id"]
            assert first != future["request_id"], "a number of long ago is not taken for a new one"
            assert await world.alice.step(run, 10) == {"metrics": {"step": float(len(state) + 1)}}

    play(scene)


async def snapshot_of(world: World, run: str) -> RunSnapshot | None:
    return await world.services.database.transaction(lambda c: repository.find(c, RunSnapshot, run_id=run))


async def payloads(world: World, run: str) -> list[tuple[int, bytes]]:
    """The number and body of each operation of a run."""
    query = select(operations.c.seq_id, operations.c.payload).where(operations.c.stream == run)
    return await world.services.database.transaction(lambda c: [tuple(row) for row in c.execute(query)])
