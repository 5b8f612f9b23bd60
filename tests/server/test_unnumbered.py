"""Operations of runs that come without a number, as published clients of MinT send them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mint.engine.core import OptimStep, ReverseKL

from .inprocess import Api, Serve, World, play

DATUM = {
    "student_input": {"chunks": [{"tokens": [5, 6]}]},
    "reference_input": {"chunks": [{"tokens": [5, 6]}]},
    "target_tokens": [6, 7],
}


async def reverse_kl(api: Api, run: str, key: str | None = None, **fields: Any) -> str:
    headers = {"X-Idempotency-Key": key} if key is not None else {}
    body = {"model_id": run, "data": [DATUM], "seq_id": None, **fields}
    return (await api.ok("mint/forward_backward_reverse_kl", body, headers=headers))["request_id"]


def order(world: World) -> str:
    """What the worker did: k for a reverse KL, s for a step."""
    names = {ReverseKL: "k", OptimStep: "s"}
    return "".join(names.get(type(command), "") for command in world.worker.executed)


def test_they_stand_where_they_came_and_the_clients_numbers_go_on(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for number in range(1, 4):
                answer = await world.alice.retrieve(await reverse_kl(world.alice, run))
                assert answer["outputs"][0]["loss"]["shape"] == [1]
                await world.alice.retrieve(await reverse_kl(world.alice, run))
                await world.alice.step(run, number)
            assert order(world) == "kks" * 3

    play(scene)


def test_a_number_sent_again_is_the_operation_it_was(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            bodies = [{"model_id": run, "seq_id": number} for number in (1, 2)]
            first = await world.alice.ok("optim_step", bodies[0])
            passed = await reverse_kl(world.alice, run, key="one")
            second = await world.alice.ok("optim_step", bodies[1])
            assert await world.alice.ok("optim_step", bodies[0]) == first
            assert await world.alice.ok("optim_step", bodies[1]) == second
            assert await reverse_kl(world.alice, run, key="one") == passed
            assert await reverse_kl(world.alice, run, key="two") != passed
            await world.alice.step(run, 3)
            assert order(world) == "sksks"

    play(scene)


def test_refused_and_lost_numbers_are_still_counted(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(gap_seconds=0.2) as world:
            run = await world.alice.run()
            await world.alice.retrieve(await reverse_kl(world.alice, run))
            wrong = {"model_id": run, "seq_id": 1, "adam_params": {"learning_rate": -1}}
            assert (await world.alice.post("optim_step", wrong)).status_code == 422
            assert (await world.alice.post("mint/forward_backward_reverse_kl", {"model_id": run})).status_code == 400
            await world.alice.step(run, 2)
            # 3 never comes
            await world.alice.step(run, 4)
            assert order(world) == "kss"

    play(scene)


def test_a_restart_knows_their_places(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(tmp_path / "one") as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            await world.alice.retrieve(await reverse_kl(world.alice, run))
            world.worker.paused = True
            await reverse_kl(world.alice, run)
        async with serve(tmp_path / "one") as world:
            await world.alice.step(run, 2)
            assert order(world) == "skks"

    play(scene)
