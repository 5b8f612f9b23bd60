"""How often the official SDK asks for a result: once per long-poll, and no more."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import perf_counter

import pytest

import mint
from mint import types

from .inprocess import ALICE, MODEL, Serve, listening, play
from .sdk import SECONDS, datum


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


@pytest.mark.parametrize(("long_poll_seconds", "fewest", "most"), [(20.0, 1, 1), (0.2, 3, 5)])
def test_polls_of_a_result_that_takes_its_time(serve: Serve, long_poll_seconds: float, fewest: int, most: int) -> None:
    async def scene() -> None:
        requests: Counter[str] = Counter()
        async with (
            serve(long_poll_seconds=long_poll_seconds) as world,
            listening(world, requests) as url,
        ):
            service = await asyncio.to_thread(mint.ServiceClient, base_url=url, api_key=ALICE)
            creating = await asyncio.to_thread(service.create_lora_training_client, MODEL, 4)
            run = await asyncio.to_thread(creating.result, SECONDS)
            world.worker.paused = True
            requests.clear()
            future = await asyncio.to_thread(run.optim_step, types.AdamParams(learning_rate=0.1))
            await asyncio.sleep(0.7)
            resumed = perf_counter()
            world.worker.resume()
            result = await asyncio.to_thread(future.result, SECONDS)
            assert perf_counter() - resumed < 1
            assert result.metrics == {"step": 1.0}
            assert fewest <= requests["retrieve_future"] <= most
            assert requests["optim_step"] == 1
            await asyncio.to_thread(service.close("success").result, SECONDS)

    play(scene)


def test_a_step_is_four_requests(serve: Serve) -> None:
    async def scene() -> None:
        requests: Counter[str] = Counter()
        async with serve() as world, listening(world, requests) as url:
            service = await asyncio.to_thread(mint.ServiceClient, base_url=url, api_key=ALICE)
            creating = await asyncio.to_thread(service.create_lora_training_client, MODEL, 4)
            run = await asyncio.to_thread(creating.result, SECONDS)
            assert requests == {
                "config": 1,
                "dynamic_config": 1,
                "create_session": 1,
                "create_model": 1,
                "retrieve_future": 1,
                "get_info": 1,
            }
            requests.clear()

            def train() -> None:
                passed = run.forward_backward([datum([5, 6, 7])], "cross_entropy")
                stepped = run.optim_step(types.AdamParams(learning_rate=0.1))
                assert passed.result(SECONDS).metrics["loss:sum"] == 2.0
                stepped.result(SECONDS)

            await asyncio.to_thread(train)
            assert requests == {"forward_backward": 1, "optim_step": 1, "retrieve_future": 2}
            await asyncio.to_thread(service.close("success").result, SECONDS)
            assert requests["finish"] == 1

    play(scene)
