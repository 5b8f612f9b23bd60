"""Names that have expired, files that nobody reads, and what a crash left behind."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import replace
from pathlib import Path
from time import time

import numpy as np
import pytest

from mint.engine.core import Revision, Sample, SamplingParams
from mint.server import sweeper
from mint.server.operations.answered import answered
from mint.server.sweeper import sweep, sweep_orphans
from mint.store.schema import Operation

from .inprocess import MODEL, ON_BOTH, Serve, play
from .test_checkpoints import SAMPLE, folders, listed, passing, saved, status, url


@ON_BOTH
def test_the_sweeper_deletes_what_has_expired_once_nobody_reads_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = await saved(world.alice, run, 1, "read", ttl_seconds=3600)
            await saved(world.alice, run, 2, "unread", ttl_seconds=3600)
            await saved(world.alice, run, 3, "kept")
            sampler = await world.alice.sampler(model_path=path)
            assert len(folders(world)) == 3
            await sweep(world.services)
            assert len(folders(world)) == 3
            passing(monkeypatch, 3601)
            await sweep(world.services)
            assert len(folders(world)) == 2
            await world.alice.result("asample", {**SAMPLE, "sampling_session_id": sampler})
            await world.alice.post(f"sessions/{sampler.partition(':')[0]}/finish")
            await sweep(world.services)
            assert len(folders(world)) == 1

    play(scene)


def test_a_strangers_use_holds_up_the_files_and_not_their_owner(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            await world.alice.send("POST", url(path, "/publish"))
            session = await world.bob.session()
            sampler = await world.bob.sampler(session, model_path=path)
            await world.bob.result("load_weights", {"session_id": session, "model_seq_id": 0, "path": path})
            assert await status(world.alice, "DELETE", path) == 204
            await sweep(world.services)
            assert len(folders(world)) == 1
            await world.bob.result("asample", {**SAMPLE, "sampling_session_id": sampler})
            await world.bob.post(f"sessions/{session}/finish")
            await sweep(world.services)
            assert folders(world) == set()

    play(scene)


def test_a_sample_that_is_not_journaled_holds_its_checkpoint(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            folder = world.services.catalog.checkpoint_dir / folders(world).pop()
            world.worker.paused = True
            command = Sample(Revision(folder.name, folder), np.array([1], np.int32), 1, SamplingParams(1, seed=0))
            drawing = asyncio.create_task(world.services.samples.run(MODEL, command, "bob"))
            await asyncio.sleep(0)
            assert await status(world.alice, "DELETE", path) == 204
            await sweep(world.services)
            assert len(folders(world)) == 1
            world.worker.resume()
            await drawing
            await sweep(world.services)
            assert folders(world) == set()

    play(scene)


def test_a_run_is_rebuilt_from_a_checkpoint_that_was_deleted(serve: Serve, tmp_path: Path) -> None:
    """Deleted by its owner while another's run had begun with it; then the server starts again."""
    bobs: list[str] = []

    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            await world.alice.send("POST", url(path, "/publish"))
            session = await world.bob.session()
            load = {"session_id": session, "model_seq_id": 0, "path": path}
            bobs.append((await world.bob.result("load_weights", load))["model_id"])
            assert await status(world.alice, "DELETE", path) == 204
        async with serve() as world:
            await sweep(world.services)
            assert await world.bob.step(bobs[0], 1) == {"metrics": {"step": 1.0}}

    play(scene)


@ON_BOTH
def test_files_outlive_their_rows_and_not_the_next_sweep(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses, or a kill, between the rows and the files leaves work for the next round."""

    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            assert await status(world.alice, "DELETE", path) == 204

            def refuse(*_: object) -> None:
                raise OSError(5, "Input/output error")

            with monkeypatch.context() as patch:
                patch.setattr("mint.store.files.rmtree", refuse)
                with pytest.raises(OSError, match="Input/output"):
                    await sweep(world.services)
            assert len(folders(world)) == 1
        async with serve() as world:
            await sweep(world.services)
            assert folders(world) == set()

    play(scene)


@ON_BOTH
def test_folders_that_no_row_knows_are_found(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            root = world.services.catalog.checkpoint_dir
            run = await world.alice.run()
            await saved(world.alice, run, 1)
            kept = folders(world)
            world.worker.paused = True
            bodies = [{"model_id": run, "seq_id": seq_id, "path": "twice"} for seq_id in (2, 3)]
            futures = [(await world.alice.ok("save_weights", body))["request_id"] for body in bodies]
            (root / f"{futures[0]}.staged").mkdir()
            for name in ("req-unknown", "req-unknown.staged"):
                (root / name).mkdir()
            assert await sweep_orphans(world.services, before=time() - 60) == 0
            assert await sweep_orphans(world.services, before=time() + 60) == 2
            assert folders(world) == kept | {f"{futures[0]}.staged"}
            world.worker.resume()
            for future in futures:
                await world.alice.retrieve(future)
            # of two saves under one name the second failed, with its files written
            assert await sweep_orphans(world.services, before=time() + 60) == 1
            assert folders(world) == kept | {futures[0]}

    play(scene)


@ON_BOTH
def test_sessions_that_ended_leave_no_revisions(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            body = {"model_id": run, "seq_id": 1, "sampling_session_seq_id": 0}
            sampler = (await world.alice.result("save_weights_for_sampler", body))["sampling_session_id"]
            await sweep(world.services)
            await world.alice.result("asample", {**SAMPLE, "sampling_session_id": sampler})
            assert await listed(world.alice) == []
            await world.alice.post(f"sessions/{session}/finish")
            await sweep(world.services)
            assert folders(world) == set()

    play(scene)


def test_what_is_read_now_can_be_asked_from_another_thread(serve: Serve) -> None:
    """The sweeper asks in a transaction, on the database's thread, while work comes and goes."""
    interval = sys.getswitchinterval()

    async def scene() -> None:
        async with serve() as world:
            results, over = world.services.results, threading.Event()
            failures: list[Exception] = []

            def ask() -> None:
                try:
                    while not over.is_set():
                        results.folders()
                except RuntimeError as error:
                    failures.append(error)

            asking = threading.Thread(target=ask)
            reads = [a_read(number) for number in range(1000)]
            sys.setswitchinterval(1e-6)
            asking.start()
            for _ in range(10):
                for work in (results.expect, results.put):
                    for operation in reads:
                        work(operation)
            over.set()
            asking.join()
            assert failures == []

    try:
        play(scene)
    finally:
        sys.setswitchinterval(interval)


def a_read(number: int) -> Operation:
    """A finished operation that has read a folder."""
    done = answered("sample", ("stream", number), "owner", {})
    return replace(done, directory=f"folder-{number}")


def test_a_round_that_fails_is_not_the_last(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "SWEEP_SECONDS", 0.01)
    rounds: list[str] = []

    async def sweep_once(_services: object) -> None:
        rounds.append("begun")
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(sweeper, "sweep", sweep_once)

    async def scene() -> None:
        async with serve():
            while len(rounds) < 3:
                await asyncio.sleep(0.01)

    play(scene)
