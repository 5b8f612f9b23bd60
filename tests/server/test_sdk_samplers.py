"""The official SDK over HTTP, against a worker that answers by rule: what is asked arrives, what is told is read."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import tinker
import torch

import mint
from mint import types
from mint.config import EngineConfig
from mint.engine.core import ExportRevision, Sample

from .inprocess import ALICE, MODEL, Serve, World, listening, play
from .sdk import SECONDS

PROMPT = types.ModelInput.from_ints([5, 6, 7, 8])
SMALL = EngineConfig(max_decode_batch=1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.setenv("TINKER_API_KEY", ALICE.replace("sk-", "tml-"))  # for copies of clients


@asynccontextmanager
async def service_of(world: World, requests: Counter[str] | None = None) -> AsyncIterator[mint.ServiceClient]:
    async with listening(world, requests) as url:
        service = await asyncio.to_thread(mint.ServiceClient, base_url=url, api_key=ALICE)
        yield service
        await asyncio.to_thread(service.close("success").result, SECONDS)


async def sampler_of(service: mint.ServiceClient) -> mint.SamplingClient:
    return await asyncio.to_thread(lambda: service.create_sampling_client(base_model=MODEL).result(SECONDS))


def sample(client: mint.SamplingClient, **options: Any) -> Any:
    """The SDK's future."""
    return client.sample(PROMPT, options.pop("num_samples", 1), types.SamplingParams(max_tokens=2), **options)


async def wait(future: Any) -> Any:
    return await asyncio.to_thread(future.result, SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_every_option_reaches_the_engine_and_every_answer_the_user(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world, service_of(world) as service:
            client = await sampler_of(service)
            ids = torch.full((3, 20), -1)
            ids[1, 9] = 16
            options = {
                "include_prompt_logprobs": True,
                "topk_prompt_logprobs": 2,
                "topk_sample_logprobs": 1,
                "target_prompt_logprobs": types.TensorData.from_torch_sparse(ids, pad_value=-1),
                "prompt_alt_tokens_k": 2,
                "prompt_logprobs_last_n": 2,
            }
            result = await wait(sample(client, num_samples=2, **options))
            command = world.worker.executed[-1]
            assert isinstance(command, Sample)
            assert (command.query.last, command.query.top, command.query.alternatives) == (2, 2, 2)
            assert result.prompt_logprobs == [None, None, -1, -1]
            assert result.topk_prompt_logprobs == [None, None, *[[(1, -0.125), (2, -0.25)]] * 2]
            assert [s.topk_logprobs for s in result.sequences] == [[[(1, -0.125)]] * 2] * 2
            targets = result.target_prompt_logprobs
            assert targets.sparse_col_indices == [9]
            np.testing.assert_array_equal(targets.to_numpy(), np.where(ids == 16, -2, 0))
            assert result.prompt_alt_tokens.tokens.tolist() == [[1, 2]] * 3
            assert result.prompt_alt_tokens.logprobs.tolist() == [[-0.125, -0.25]] * 3
            assert result.prompt_cache_hit_tokens == 0
            assert (await wait(sample(client))).prompt_cache_hit_tokens == 3

            dense = types.TensorData.from_torch(torch.tensor([[8], [-1], [16]]))
            result = await wait(sample(client, target_prompt_logprobs=dense))
            assert result.target_prompt_logprobs.tolist() == [[-1], [0], [-2]]
            last = await wait(client.compute_logprobs(PROMPT, prompt_logprobs_last_n=1))
            assert last == [None, None, None, -1]

    play(scene)


def test_refusals_name_field_and_limit(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world, service_of(world) as service:
            client = await sampler_of(service)
            wide = types.TensorData.from_torch(torch.zeros(4, 1, dtype=torch.int64))
            for options, named in (
                ({"topk_prompt_logprobs": 101}, "topk_prompt_logprobs.*100"),
                ({"prompt_logprobs_last_n": 4, "include_prompt_logprobs": True}, "prompt_logprobs_last_n.*last 3"),
                ({"target_prompt_logprobs": wide}, "target_prompt_logprobs.*3, K"),
            ):
                with pytest.raises(tinker.BadRequestError, match=named):
                    await wait(sample(client, **options))
            with pytest.raises(tinker.UnprocessableEntityError, match=r"num_samples.*1024"):
                await wait(sample(client, num_samples=1025))
            assert world.worker.times(Sample) == 0

    play(scene)


def test_a_future_that_is_cancelled_is_cancelled_here(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(engine=SMALL) as world, service_of(world) as service:
            client = await sampler_of(service)
            world.worker.paused = True
            running, waiting = [sample(client).future() for _ in range(2)]
            await until(lambda: len(world.services.samples.clients()) == 1 and len(world.worker.backlog) == 1)
            await asyncio.sleep(0.2)
            for future in (running, waiting):
                assert future.cancel()
            await until(lambda: not (world.services.samples.clients() or world.worker.backlog))
            world.worker.resume()
            assert len((await wait(sample(client))).sequences) == 1

    play(scene)


def test_the_end_of_a_session_ends_what_it_waits_for(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(engine=SMALL) as world, listening(world) as url:
            service = await asyncio.to_thread(mint.ServiceClient, base_url=url, api_key=ALICE)
            client = await sampler_of(service)
            world.worker.paused = True
            futures = [sample(client) for _ in range(3)]
            await until(lambda: len(world.services.samples.of_client(service.holder.get_session_id())) == 3)
            await asyncio.to_thread(service.close("success").result, SECONDS)
            await until(lambda: not (world.services.samples.clients() or world.worker.backlog))
            del futures

    play(scene)


def test_a_full_line_slows_the_sdk_down_and_loses_nothing(serve: Serve) -> None:
    async def scene() -> None:
        requests: Counter[str] = Counter()
        async with serve(engine=SMALL, max_waiting_samples=2) as world, service_of(world, requests) as service:
            client = await sampler_of(service)
            world.worker.paused = True
            futures = [sample(client) for _ in range(6)]
            await asyncio.sleep(0.5)
            assert len(world.services.samples.of_client(service.holder.get_session_id())) <= 3
            world.worker.resume()
            for future in futures:
                assert len((await wait(future)).sequences) == 1
            assert requests["asample"] > 6
            assert world.worker.times(Sample) == 6

    play(scene)


def test_the_sdk_says_that_a_sample_waits(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with serve(engine=SMALL, long_poll_seconds=0.1) as world, service_of(world) as service:
            client = await sampler_of(service)
            # older versions poll for each sample by itself, and are told of its place
            config = client.holder._client_config
            client.holder._client_config = config.model_copy(update={"sample_use_retrieve_futures": False})
            world.worker.paused = True
            futures = [sample(client) for _ in range(2)]
            with caplog.at_level(logging.WARNING, "tinker"):
                await until(lambda: "number 1 of 1 in line" in caplog.text)
            world.worker.resume()
            for future in futures:
                await wait(future)

    play(scene)


def test_inflight_clients_follow_their_run(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world, service_of(world) as service:
            run = await wait(await asyncio.to_thread(service.create_lora_training_client, MODEL, 4))

            async def saved(kind: str) -> mint.SamplingClient:
                return await wait(await asyncio.to_thread(run.save_weights_and_get_sampling_client, kind=kind))

            async def revision(client: mint.SamplingClient) -> str:
                await wait(sample(client))
                command = world.worker.executed[-1]
                assert isinstance(command, Sample)
                assert command.revision is not None
                return command.revision.key

            first, fixed = await saved("inflight"), await saved("snapshot")
            before = [await revision(first), await revision(fixed)]
            second = await saved("inflight")
            keys = [command.key for command in world.worker.executed if isinstance(command, ExportRevision)]
            assert before == keys[:2]
            assert [await revision(client) for client in (first, second, fixed)] == [keys[2], keys[2], keys[1]]

    play(scene)


def test_copies_of_a_client_join_and_draw_for_themselves(serve: Serve) -> None:
    async def scene() -> None:
        requests: Counter[str] = Counter()
        async with serve() as world, service_of(world, requests) as service:
            client = await sampler_of(service)
            copies = [await asyncio.to_thread(lambda: pickle.loads(pickle.dumps(client))) for _ in range(2)]
            for member in (client, *copies):
                for _ in range(2):
                    assert len((await wait(sample(member))).sequences) == 1
            assert requests["join_sampling_session"] == 2
            assert sorted(copy._cloned_sampler_id for copy in copies) == [1, 2]
            assert world.worker.times(Sample) == 6
            seeds = {command.params.seed for command in world.worker.executed if isinstance(command, Sample)}
            assert len(seeds) == 6

    play(scene)
