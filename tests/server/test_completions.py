"""retrieve_futures: one long-poll for all samples of a client."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

import mint
from mint import types
from mint.server import completions

from .inprocess import ALICE, MODEL, Api, Serve, listening, play
from .sdk import SECONDS


async def sample(api: Api, sampler: str, number: int) -> str:
    body = {"sampling_session_id": sampler, "seq_id": number, "prompt": {"chunks": [{"tokens": [5, 6]}]}}
    answer = await api.ok("asample", {**body, "sampling_params": {"max_tokens": 2}})
    return answer["request_id"]


async def poll(api: Api, sampler: str, cursor: int = 0, clone: int = 0, **more: Any) -> tuple[list[str], int]:
    target = {"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": clone}
    answer = await api.ok("retrieve_futures", {"target": target, "prev_cursor": cursor, **more})
    for each in answer["completions"]:
        assert each["state"] == "finished"
        assert each["response_payload_uncompressed_size"] > 0
    return [each["request_id"] for each in answer["completions"]], answer["cursor"]


async def until(api: Api, sampler: str, wanted: set[str], cursor: int = 0) -> int:
    """Poll until all of these have been told of, and nothing else; the cursor then."""
    told: set[str] = set()
    while told != wanted:
        found, cursor = await poll(api, sampler, cursor)
        assert set(found) <= wanted
        told |= set(found)
    return cursor


def test_a_poll_waits_for_the_next_sample_and_tells_of_it_once(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            first = await sample(world.alice, sampler, 0)
            cursor = await until(world.alice, sampler, {first})
            world.worker.paused = True
            second = await sample(world.alice, sampler, 1)
            polling = asyncio.create_task(poll(world.alice, sampler, cursor))
            await asyncio.sleep(0.1)
            assert not polling.done()
            world.worker.resume()
            assert (await polling)[0] == [second]
            assert await poll(world.alice, sampler, (await polling)[1], timeout=0) == ([], (await polling)[1])

    play(scene)


def test_an_empty_poll_is_held_open_as_long_as_it_is_asked_to_be(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(long_poll_seconds=0.3) as world:
            sampler = await world.alice.sampler()
            for asked, least, most in ((None, 0.3, 2.0), (0.1, 0.1, 0.29), (0, 0.0, 0.1), (60, 0.3, 2.0)):
                started = perf_counter()
                found, _ = await poll(world.alice, sampler, timeout=asked)
                assert (found, least <= perf_counter() - started < most) == ([], True)

    play(scene)


def test_copies_of_a_client_hear_of_their_own_samples(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            numbers = (0, completions.PER_CLONE, completions.PER_CLONE + 1, 2 * completions.PER_CLONE)
            ids = [await sample(world.alice, sampler, number) for number in numbers]
            for each in ids:
                await world.alice.ok("retrieve_future", {"request_id": each})
            told = [(await poll(world.alice, sampler, clone=clone))[0] for clone in range(3)]
            assert [set(each) for each in told] == [{ids[0]}, {ids[1], ids[2]}, {ids[3]}]

    play(scene)


def test_a_client_goes_on_where_it_was_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(tmp_path / "one", paused=True) as world:
            sampler = await world.alice.sampler()
            world.worker.resume()
            first = await sample(world.alice, sampler, 0)
            cursor = await until(world.alice, sampler, {first})
            world.worker.paused = True
            second = await sample(world.alice, sampler, 1)
        async with serve(tmp_path / "one") as world:
            told: set[str] = set()
            while second not in told:
                found, cursor = await poll(world.alice, sampler, cursor)
                told |= set(found)
            assert told <= {first, second}

    play(scene)


def test_a_client_that_is_far_behind_misses_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "KEPT", 2)

    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            _, cursor = await poll(world.alice, sampler, timeout=0)
            ids = {await sample(world.alice, sampler, number) for number in range(6)}
            for each in ids:
                await world.alice.ok("retrieve_future", {"request_id": each})
            assert set((await poll(world.alice, sampler, cursor))[0]) == ids

    play(scene)


def test_what_failed_is_said_to_have_failed(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True) as world:
            sampler = await world.alice.sampler()
            request_id = await sample(world.alice, sampler, 0)
            await world.alice.post("cancel_future", {"request_id": request_id})
            target = {"type": "sampling_session", "sampling_session_id": sampler}
            answer = await world.alice.ok("retrieve_futures", {"target": target})
            assert answer["completions"] == [{"state": "failed", "request_id": request_id}]

    play(scene)


def test_what_is_refused(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            target = {"type": "sampling_session", "sampling_session_id": sampler}
            assert (await world.bob.post("retrieve_futures", {"target": target})).status_code == 403
            unknown = {**target, "sampling_session_id": "unknown"}
            assert (await world.alice.post("retrieve_futures", {"target": unknown})).status_code == 404
            for wrong in ({"type": "else"}, {"sampling_session_id": 5}, {"cloned_sampler_id": -1}):
                assert (await world.alice.post("retrieve_futures", {"target": {**target, **wrong}})).status_code == 422
            for wrong in ({"prev_cursor": -1}, {"timeout": -1}):
                assert (await world.alice.post("retrieve_futures", {"target": target, **wrong})).status_code == 422

    play(scene)


def test_a_rollout_of_the_sdk_is_one_poll_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    count = 200

    def rollout(sampler: mint.SamplingClient) -> None:
        prompt, settings = types.ModelInput.from_ints([5, 6]), types.SamplingParams(max_tokens=2)
        futures = [sampler.sample(prompt, 1, settings) for _ in range(count)]
        assert all(future.result(SECONDS).sequences for future in futures)

    async def scene() -> None:
        requests: Counter[str] = Counter()
        async with serve() as world, listening(world, requests) as url:
            service = await asyncio.to_thread(mint.ServiceClient, base_url=url, api_key=ALICE)
            creating = await asyncio.to_thread(service.create_sampling_client, base_model=MODEL)
            sampler = await asyncio.to_thread(creating.result, SECONDS)
            world.worker.paused = True
            waiting = asyncio.create_task(asyncio.to_thread(rollout, sampler))
            while requests["asample"] < count or not requests["retrieve_futures"]:
                await asyncio.sleep(0.02)
            assert (requests["retrieve_future"], requests["retrieve_futures"]) == (0, 1)
            world.worker.resume()
            world.worker.paused = False
            await waiting
            assert requests["retrieve_future"] == count
            await asyncio.to_thread(service.close("success").result, SECONDS)

    play(scene)


def test_a_clock_that_was_set_back_before_a_restart_hides_nothing(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            first = await sample(world.alice, sampler, 0)
            later = await until(world.alice, sampler, {first}) + 30_000_000
        async with serve() as world:
            second = await sample(world.alice, sampler, 1)
            await world.alice.retrieve(second)
            later = await until(world.alice, sampler, {first, second}, later)
            third = await sample(world.alice, sampler, 2)
            later = await until(world.alice, sampler, {third}, later)
            assert await poll(world.alice, sampler, later, timeout=0) == ([], later)

    play(scene)
