"""retrieve_future: a long-poll that waits, wakes at once, and can be asked again."""

from __future__ import annotations

import asyncio
from time import perf_counter

import numpy as np

from mint.engine.core import OptimStep
from mint.wire import messages_pb2 as pb

from .inprocess import PROTOBUF, Serve, play


def test_a_poll_waits_and_wakes_the_moment_the_result_is_there(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            polls = [asyncio.create_task(world.alice.retrieve(future["request_id"])) for _ in range(3)]
            done, _ = await asyncio.wait(polls, timeout=0.3)
            assert not done
            finished = perf_counter()
            world.worker.resume()
            answers = await asyncio.gather(*polls)
            assert perf_counter() - finished < 1
            assert answers == [{"metrics": {"step": 1.0}}] * 3
            assert world.services.results._under_way == {}

    play(scene)


def test_a_result_can_be_fetched_again(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            assert future["model_id"] == run
            first, second = [await world.alice.retrieve(future["request_id"]) for _ in range(2)]
            assert first == second == {"metrics": {"step": 1.0}}

    play(scene)


def test_pending_is_408_with_the_queues_state(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(long_poll_seconds=0.2) as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            started = perf_counter()
            response = await world.alice.post("retrieve_future", {"request_id": future["request_id"]})
            assert perf_counter() - started >= 0.19
            assert (response.status_code, response.json()["queue_state"]) == (408, "active")
            world.worker.resume()
            assert await world.alice.retrieve(future["request_id"]) == {"metrics": {"step": 1.0}}

    play(scene)


def test_unknown_is_410_and_someone_elses_403(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            unknown = await world.alice.post("retrieve_future", {"request_id": "req-unknown"})
            assert (unknown.status_code, unknown.json()["field"]) == (410, "request_id")
            for paused in (False, True):
                world.worker.paused = paused
                stolen = await world.bob.post("retrieve_future", {"request_id": future["request_id"]})
                assert stolen.status_code == 403

    play(scene)


def test_a_failed_operation_is_a_failed_future(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.runs.clear()
            failed = await world.alice.step(run, 1)
            assert set(failed) == {"error", "category"}
            assert failed["category"] == "server"
            accepted = {"headers": {"Accept": PROTOBUF}}
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            body = {"request_id": future["request_id"]}
            assert (await world.alice.post("retrieve_future", body, **accepted)).json() == failed

    play(scene)


def test_passes_and_samples_come_in_what_the_client_reads(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            sampler = await world.alice.sampler()
            body = {
                "prompt": {"chunks": [{"tokens": [1, 2, 3]}]},
                "sampling_session_id": sampler,
                "sampling_params": {"max_tokens": 2},
                "prompt_logprobs": True,
                "num_samples": 2,
            }
            future = await world.alice.ok("asample", body)
            assert len(set(future["sample_sequence_ids"])) == 2
            poll = {"request_id": future["request_id"], "allow_metadata_only": True}
            for accept in (PROTOBUF, f"{PROTOBUF}, application/json"):
                response = await world.alice.post("retrieve_future", poll, headers={"Accept": accept})
                assert response.headers["content-type"] == PROTOBUF
                message = pb.SampleResponse.FromString(response.content)
                assert [np.frombuffer(s.tokens, "<i4").tolist() for s in message.sequences] == [[3, 4]] * 2
            as_json = await world.alice.ok("retrieve_future", poll, headers={"Accept": "application/json"})
            assert as_json["prompt_logprobs"] == [None, -1.0, -1.0]
            sequence = {"stop_reason": "length", "tokens": [3, 4], "logprobs": [-0.5, -0.5]}
            assert as_json["sequences"] == [sequence] * 2

            poll = {"request_id": (await world.alice.pass_(run, 1)).json()["request_id"]}
            response = await world.alice.post("retrieve_future", poll, headers={"Accept": PROTOBUF})
            assert pb.ForwardBackwardOutput.FromString(response.content).metrics["loss:sum"] == 2.0
            as_json = await world.alice.ok("retrieve_future", poll, headers={"Accept": "*/*"})
            assert as_json["loss_fn_outputs"][0]["logprobs"]["data"] == [-2.0] * 3

    play(scene)


def test_many_results_wait_for_nobody(serve: Serve) -> None:
    """Futures are polled side by side, in any order, before and after they are done."""

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            futures = [await world.alice.ok("optim_step", {"model_id": run, "seq_id": n}) for n in range(1, 41)]
            polls = [asyncio.create_task(world.alice.retrieve(f["request_id"])) for f in reversed(futures)]
            await asyncio.sleep(0.05)
            world.worker.resume()
            answers = await asyncio.gather(*polls)
            assert [a["metrics"]["step"] for a in reversed(answers)] == [float(n) for n in range(1, 41)]
            assert world.worker.times(OptimStep) == 40

    play(scene)
