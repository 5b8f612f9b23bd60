"""Numbers: out of order, missing, refused, after the end."""

from __future__ import annotations

import asyncio

from mint.engine.core import ForwardBackward, OptimStep

from .inprocess import Serve, datum, play


def test_chunks_that_arrive_last_first_are_executed_in_order(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            later = await asyncio.gather(
                *(world.alice.pass_(run, number, datum([number], [1])) for number in (3, 2, 4))
            )
            step = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 5})
            assert world.worker.times(ForwardBackward, OptimStep) == 0
            first = await world.alice.pass_(run, 1, datum([1], [1]))
            for response in (first, *later):
                await world.alice.retrieve(response.json()["request_id"])
            await world.alice.retrieve(step["request_id"])
            passes = [command for command in world.worker.executed if isinstance(command, ForwardBackward)]
            assert [int(command.data[0].tokens[0]) for command in passes] == [1, 2, 3, 4]
            assert isinstance(world.worker.executed[-1], OptimStep)

    play(scene)


def test_a_number_that_never_arrives_is_given_up(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(gap_seconds=0.2) as world:
            run = await world.alice.run()
            assert "metrics" in await world.alice.step(run, 2)
            late = await world.alice.step(run, 1)
            assert late["category"] == "user"
            assert "seq_id" in late["error"]
            assert "metrics" in await world.alice.step(run, 3)

    play(scene)


def test_operations_of_a_run_that_was_refused_fail_at_once(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            response = await world.alice.post("optim_step", {"model_id": f"{session}:train:0", "seq_id": 1})
            assert (response.status_code, response.json()["field"]) == (404, "model_id")
            # and the number of the run that is then made is not spent
            run = await world.alice.run(session)
            await world.alice.step(run, 1)

    play(scene)
