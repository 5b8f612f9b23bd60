"""A number of a sampling session is one draw: whoever sends it again, however often, whatever has happened since."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from mint.engine.core import Sample

from .inprocess import Serve, World, play


def request(sampler: str, seq_id: int, **params: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2, **params}}
    return {**body, "sampling_session_id": sampler, "seq_id": seq_id, "num_samples": 2}


def seeds(world: World) -> list[int]:
    return [command.params.seed for command in world.worker.executed if isinstance(command, Sample)]


@pytest.mark.parametrize("finished", [False, True])
def test_sent_again_to_the_next_process_it_is_the_same_draw(serve: Serve, tmp_path: Path, finished: bool) -> None:
    async def scene() -> None:
        async with serve(paused=not finished) as world:
            sampler = await world.alice.sampler()
            first = await world.alice.ok("asample", request(sampler, 7))
            if finished:
                result = await world.alice.retrieve(first["request_id"])
            folder = Path(shutil.copytree(tmp_path / "data", tmp_path / "killed"))
        async with serve(folder) as world:
            again = await asyncio.gather(*(world.alice.ok("asample", request(sampler, 7)) for _ in range(10)))
            assert again == [first] * 10
            answer = await world.alice.retrieve(first["request_id"])
            assert not finished or answer == result
            assert len(seeds(world)) == (0 if finished else 1)

    play(scene)


def test_sent_again_with_another_content_it_is_still_the_first(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            first = await world.alice.ok("asample", request(sampler, 0, seed=1))
            assert await world.alice.ok("asample", request(sampler, 0, seed=2)) == first
            await world.alice.retrieve(first["request_id"])
            assert seeds(world) == [1]

    play(scene)


def test_without_a_seed_every_request_has_its_own(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            answers = await asyncio.gather(*(world.alice.ok("asample", request(sampler, n)) for n in range(20)))
            for answer in answers:
                await world.alice.retrieve(answer["request_id"])
            assert len(set(seeds(world))) == 20
            assert len({name for answer in answers for name in answer["sample_sequence_ids"]}) == 40

    play(scene)


def test_a_seed_is_the_engines_as_it_came(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            given = [0, 7, 7, (1 << 64) - 1]
            for number, seed in enumerate(given):
                await world.alice.result("asample", request(sampler, number, seed=seed))
            assert seeds(world) == given

    play(scene)


def test_after_a_restart_waiting_samples_go_in_the_order_in_which_they_came(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(paused=True) as world:
            session = await world.alice.session()
            samplers = [await world.alice.sampler(session, number) for number in range(2)]
            for number in range(6):  # numbers of clients fall, and samplers alternate
                await world.alice.ok("asample", request(samplers[number % 2], 10 - number, seed=number))
            folder = Path(shutil.copytree(tmp_path / "data", tmp_path / "killed"))
        async with serve(folder) as world:
            await world.alice.session()
            while len(seeds(world)) < 6:
                await asyncio.sleep(0.01)
            assert seeds(world) == list(range(6))

    play(scene)
