"""Sampling sessions of a run: snapshot and inflight, what they leave on disk, and copies of their client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mint.engine.core import Sample
from mint.store import repository

from .inprocess import Api, Serve, World, play


async def save(world: World, run: str, seq_id: int, number: int, kind: str = "snapshot") -> str:
    """Save for a new sampling session; its id."""
    body = {"model_id": run, "seq_id": seq_id, "sampling_session_seq_id": number, "kind": kind}
    answer = await world.alice.result("save_weights_for_sampler", body)
    assert list(answer) == ["sampling_session_id"], answer
    return str(answer["sampling_session_id"])


def request(sampler: str, seq_id: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}
    return {**body, "sampling_session_id": sampler, "seq_id": seq_id}


async def weights(world: World, sampler: str, seq_id: int) -> str:
    """What the sampler reads now: the fake worker writes down how much has happened to the run."""
    await world.alice.result("asample", request(sampler, seq_id))
    return weights_of(world.worker.executed[-1])


def weights_of(command: Any) -> str:
    assert isinstance(command, Sample)
    assert command.revision is not None
    return (command.revision.directory / "weights").read_text()


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_inflight_samplers_follow_their_run_and_snapshots_do_not(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run, other = await world.alice.run(session, 0), await world.alice.run(session, 1)
            first = await save(world, run, 1, 0, "inflight")
            fixed = await save(world, run, 2, 1)
            foreign = await save(world, other, 1, 2, "inflight")
            await world.alice.step(run, 3)
            assert [await weights(world, sampler, 0) for sampler in (first, fixed, foreign)] == ["1", "1", "1"]
            second = await save(world, run, 4, 3, "inflight")
            assert await weights(world, first, 1) == await weights(world, second, 1) == "2"
            assert await weights(world, fixed, 1) == await weights(world, foreign, 1) == "1"
            await world.alice.step(run, 5)
            assert await weights(world, first, 2) == "2"

    play(scene)


def test_what_was_submitted_before_keeps_its_weights(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            sampler = await save(world, run, 1, 0, "inflight")
            await world.alice.step(run, 2)
            world.worker.paused = True
            before = await world.alice.ok("asample", request(sampler))
            body = {"model_id": run, "seq_id": 3, "sampling_session_seq_id": 1, "kind": "inflight"}
            saving = await world.alice.ok("save_weights_for_sampler", body)
            world.worker.resume()
            await world.alice.retrieve(before["request_id"])
            await world.alice.retrieve(saving["request_id"])
            drawn = [weights_of(command) for command in world.worker.executed if isinstance(command, Sample)]
            assert drawn == ["1"]
            assert await world.alice.ok("asample", request(sampler)) == before  # sent again, it is the same
            assert await weights(world, sampler, 1) == "2"

    play(scene)


def test_an_older_save_that_is_written_late_leads_nobody_back(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            sampler = await save(world, run, 1, 0, "inflight")
            await world.alice.step(run, 2)
            newer = await save(world, run, 3, 1, "inflight")
            await world.services.database.transaction(lambda c: repository.follow(c, run, 1, "older"))
            assert await weights(world, sampler, 0) == await weights(world, newer, 0) == "2"

    play(scene)


def test_an_inflight_save_has_no_name(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = {"model_id": run, "seq_id": 1, "path": "a", "kind": "inflight"}
            response = await world.alice.post("save_weights_for_sampler", body)
            assert (response.status_code, response.json()["field"]) == (400, "kind")
            await world.alice.step(run, 2)

    play(scene)


@pytest.mark.parametrize("kind", ["snapshot", "inflight"])
def test_revisions_without_a_name_end_with_their_session(serve: Serve, tmp_path: Path, kind: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            session, other = await world.alice.session(), await world.alice.session()
            run, staying = await world.alice.run(session), await world.alice.run(other)
            await save(world, run, 1, 0, kind)
            await save(world, run, 2, 1, kind)
            named = {"model_id": run, "seq_id": 3, "path": "named"}
            path = (await world.alice.result("save_weights_for_sampler", named))["path"]
            theirs = await save(world, staying, 1, 0, kind)
            assert len(folders(tmp_path / "data")) == 4
            await world.alice.post(f"sessions/{session}/finish", {})
            assert len(folders(tmp_path / "data")) == 2
            assert await weights(world, theirs, 0) == "1"
            assert await weights(world, await world.alice.sampler(model_path=path), 0) == "1"

    play(scene)


def test_revisions_without_a_name_end_when_the_client_has_gone(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(session_timeout_seconds=0.8) as world:
            session, other = await world.alice.session(), await world.alice.session()
            run, staying = await world.alice.run(session), await world.alice.run(other)
            gone, kept = await save(world, run, 1, 0), await save(world, staying, 1, 0)
            for _ in range(8):
                await asyncio.sleep(0.15)
                await world.alice.ok("session_heartbeat", {"session_id": other})
            assert len(folders(tmp_path / "data")) == 1
            assert await weights(world, kept, 0) == "1"
            # the client comes back: its run is there, that sampler is not
            response = await world.alice.post("asample", request(gone))
            assert (response.status_code, response.json()["field"]) == (410, "sampling_session_id")
            await world.alice.step(run, 2)
            assert await weights(world, await save(world, run, 3, 1), 0) == "2"

    play(scene)


def test_what_a_finished_session_left_is_removed_by_the_next_process(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            world.worker.paused = True
            body = {"model_id": run, "seq_id": 1, "sampling_session_seq_id": 0}
            saving = await world.alice.ok("save_weights_for_sampler", body)
            await asyncio.sleep(0.01)
            await world.alice.post(f"sessions/{session}/finish", {})
            world.worker.resume()  # what was accepted is carried out, also after the end
            assert "sampling_session_id" in await world.alice.retrieve(saving["request_id"])
            assert len(folders(tmp_path / "data")) == 1
        async with serve(tmp_path / "data", session_timeout_seconds=0.5):
            await asyncio.sleep(0.3)
            assert folders(tmp_path / "data") == []

    play(scene)


def test_copies_of_a_client_are_numbered(serve: Serve) -> None:
    async def join(api: Api, sampler: str) -> Any:
        return (await api.post("join_sampling_session", {"sampling_session_id": sampler})).json()

    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            first, second = [await world.alice.sampler(session, number) for number in range(2)]
            answers = await asyncio.gather(*(join(world.alice, first) for _ in range(5)))
            assert sorted(answer["client_counter"] for answer in answers) == [1, 2, 3, 4, 5]
            assert await join(world.alice, second) == {"client_counter": 1, "type": "join_sampling_session"}
            assert (await join(world.bob, first))["field"] == "sampling_session_id"
            response = await world.alice.post("join_sampling_session", {"sampling_session_id": "x"})
            assert response.status_code == 404
            await world.alice.post(f"sessions/{session}/finish", {})
            response = await world.alice.post("join_sampling_session", {"sampling_session_id": first})
            assert response.status_code == 410

    play(scene)
