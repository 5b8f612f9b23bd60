"""Limits of keys: what is refused, how, and that everything else goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from mint.engine.core import OptimStep
from mint.errors import RateLimitError
from mint.server.limits import Rates
from mint.store.keys import Key, Role
from mint.store.schema import sessions

from .inprocess import MODEL, ON_BOTH, Api, Serve, World, datum, play
from .key_rows import add, beside

KEY = "sk-limited-key"


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    answer = response.json()
    return response.status_code, answer["type"], answer["field"]


def test_a_bucket_fills_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("mint.server.limits.monotonic", lambda: now[0])
    rates = Rates()
    fast = Key("d", "o", Role.USER, 0.0, requests_per_second=2.0, key_id=1)
    slow = Key("e", "o", Role.USER, 0.0, requests_per_second=0.1, key_id=2)

    def wait(key: Key) -> float | None:
        """How long the client is told to wait; None if it is let in."""
        try:
            rates.take(key)
        except RateLimitError as error:
            return error.retry_after
        return None

    assert [wait(fast) for _ in range(3)] == [None, None, 0.5]
    now[0] += 0.25
    assert wait(fast) == 0.25
    now[0] += 0.25
    assert [wait(fast) for _ in range(2)] == [None, 0.5]
    now[0] += 1000  # no more than a second's worth is saved up
    assert [wait(fast) for _ in range(3)] == [None, None, 0.5]
    assert [wait(slow) for _ in range(2)] == [None, 10.0]


@ON_BOTH
def test_requests_per_second_do_not_count_what_clients_ask_by_themselves(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, requests_per_second=0.5)
            session = await made.session()
            response = await made.post("create_session")
            assert refusal(response) == (429, "RateLimitError", "requests_per_second")
            assert response.headers["retry-after"] == "2"
            assert 1000 < int(response.headers["retry-after-ms"]) <= 2000
            for _ in range(10):
                await made.ok("session_heartbeat", {"session_id": session})
                await made.ok("client/dynamic_config")
                await made.ok("telemetry")
                assert (await made.post("cancel_future", {"request_id": "x"})).status_code == 410
                assert (await made.post("retrieve_future", {"request_id": "x"})).status_code == 410
            # OpenAI's clients are told as the SDK is
            response = await made.http.get("/v1/models", headers={"X-API-Key": made.key})
            assert (response.status_code, response.json()["error"]["param"]) == (429, "requests_per_second")
            assert response.headers["retry-after"] in ("1", "2")
            await world.alice.session()

    play(scene)


@ON_BOTH
def test_live_runs_are_those_of_open_sessions_that_are_heard_of(serve: Serve) -> None:
    async def refused(api: Api, session: str) -> tuple[int, str, str]:
        body = {"session_id": session, "model_seq_id": 9, "base_model": MODEL, "lora_config": {"rank": 4}}
        return refusal(await api.post("create_model", body))

    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, max_live_runs=2)
            first, second, third = [await made.session() for _ in range(3)]
            run = await made.run(first)
            path = (await made.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            await made.run(second)
            full = (403, "LimitExceededError", "max_live_runs")
            assert await refused(made, third) == full
            load = {"session_id": third, "model_seq_id": 8, "path": path}
            assert refusal(await made.post("load_weights", load)) == full
            # the owner's own other key has no such limit, and what exists goes on
            other, _ = await add(world, "sk-another-of-lab")
            await other.run(await other.session())
            await made.step(run, 2)
            assert await made.run(first) == run
            # a finished session's runs are no more, nor those of one that has been silent
            for session in (first, second):
                await made.post(f"sessions/{session}/finish")
            await made.run(third)
            assert await refused(made, third) == full
            silence = world.services.config.session_timeout_seconds
            long_ago = update(sessions).values(last_heartbeat=sessions.c.last_heartbeat - silence)
            await beside(world, lambda c: c.execute(long_ago.where(sessions.c.session_id == third)))
            await made.run(await made.session())

    play(scene)


@ON_BOTH
def test_stored_bytes_are_those_of_checkpoints(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, max_stored_bytes=2)  # a checkpoint of this worker has one
            run = await made.run()
            await made.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            await made.result("save_weights_for_sampler", {"model_id": run, "seq_id": 2, "path": "b"})
            full = (403, "LimitExceededError", "max_stored_bytes")
            for number, path in ((3, "save_weights"), (4, "save_weights_for_sampler")):
                assert refusal(await made.post(path, {"model_id": run, "seq_id": number, "path": "c"})) == full
            # the numbers are spent, and training goes on
            await made.step(run, 5)
            path = f"tinker://{run}/weights/a"
            copy = {"source_path": path, "destination_project_id": "p"}
            assert refusal(await made.post("copy_weights", copy)) == full
            await made.send("DELETE", f"training_runs/{run}/checkpoints/sampler_weights/b")
            # two names of the same files are one time their bytes
            await made.ok("copy_weights", copy)
            await made.result("save_weights", {"model_id": run, "seq_id": 6, "path": "c"})
            await world.alice.result("save_weights", {"model_id": await world.alice.run(), "seq_id": 1, "path": "a"})

    play(scene)


def queue_full(response: httpx.Response) -> bool:
    if response.status_code == 200:
        return False
    assert refusal(response) == (429, "RateLimitError", "max_queued_operations")
    assert int(response.headers["retry-after"]) >= 1
    return True


@ON_BOTH
def test_the_queue_takes_what_it_may_and_the_rest_later(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, max_queued_operations=2)
            run, bystander = await made.run(), await world.alice.run()
            world.worker.paused = True
            first = await made.post("optim_step", {"model_id": run, "seq_id": 1})
            # the number that the run goes on with is always taken
            answers = [await made.post("optim_step", {"model_id": run, "seq_id": n}) for n in (3, 4, 5)]
            assert [queue_full(answer) for answer in (first, *answers)] == [False, False, True, True]
            again = await made.post("optim_step", {"model_id": run, "seq_id": 3})
            assert again.json() == answers[0].json()
            awaited = await made.post("optim_step", {"model_id": run, "seq_id": 2})
            assert not queue_full(awaited)
            await world.alice.ok("optim_step", {"model_id": bystander, "seq_id": 1})
            world.worker.resume()
            for answer in (first, awaited, answers[0]):
                await made.retrieve(answer.json()["request_id"])
            # a refused number is not spent
            for number in (4, 5):
                await made.step(run, number)
            assert world.worker.times(OptimStep) == 6

    play(scene)


@ON_BOTH
def test_many_at_once_do_not_pass_the_limit(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, max_queued_operations=3)
            sampler = await made.sampler()
            world.worker.paused = True
            body: dict[str, Any] = {"sampling_session_id": sampler, "prompt": {"chunks": [{"tokens": [1]}]}}
            body["sampling_params"] = {"max_tokens": 1}
            answers = await asyncio.gather(*(made.post("asample", {**body, "seq_id": n}) for n in range(10)))
            assert [queue_full(answer) for answer in answers].count(False) == 3
            world.worker.resume()

    play(scene)


@ON_BOTH
def test_a_call_in_chunks_gets_through_a_short_queue(serve: Serve) -> None:
    """The SDK sends the first chunk last, and repeats what was refused."""

    async def insist(world: World, api: Api, run: str, number: int) -> str:
        while queue_full(answer := await api.pass_(run, number, datum())):
            await asyncio.sleep(0.01)
        return str(answer.json()["request_id"])

    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, max_queued_operations=2)
            run = await made.run()
            ids = await asyncio.gather(*(insist(world, made, run, number) for number in range(8, 0, -1)))
            for request_id in ids:
                await made.retrieve(request_id)

    play(scene)
