"""A run's rollout correction: checked when the run is created, kept with it, and part of every pass it is for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mint.engine.core import CreateRun, ForwardBackward, LoadState, RestoreRun
from mint.engine.rollout_correction import parse_rollout_correction
from mint.store import repository
from mint.store.schema import Run

from .inprocess import MODEL, Api, Serve, World, created, datum, play

PUBLISHED = {
    "rollout_is": "sequence",
    "rollout_is_threshold": 1.1,
    "rollout_rs": "seq_sum_k1",
    "rollout_rs_threshold": "0.5_2.0",
    "bypass_mode": True,
    "loss_type": "reinforce",
}
POLICY = {"logprobs": [-1.0, -2.0, -3.0], "advantages": [1.0, 0.5, -1.0]}


def body(session: str, config: Any, number: int = 0) -> dict[str, Any]:
    lora = {"session_id": session, "model_seq_id": number, "base_model": MODEL, "lora_config": {"rank": 4}}
    return {**lora, "rollout_correction_config": config}


async def new_run(api: Api, config: Any, number: int = 0) -> str:
    session = await api.session()
    return (await api.result("create_model", body(session, config, number)))["model_id"]


async def stored(world: World, run: str) -> Run | None:
    return await world.services.database.transaction(lambda c: repository.find(c, Run, run_id=run))


async def passed(world: World, run: str, number: int, loss_fn: str = "importance_sampling") -> ForwardBackward:
    """The command that the worker got for a pass."""
    response = await world.alice.pass_(run, number, datum(**POLICY), loss_fn=loss_fn)
    assert response.status_code == 200, response.text
    assert "metrics" in await world.alice.retrieve(response.json()["request_id"])
    command = world.worker.executed[-1]
    assert isinstance(command, ForwardBackward)
    return command


def test_a_run_keeps_its_correction(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await new_run(world.alice, PUBLISHED)
            plain = await world.alice.run()
            found = await stored(world, run)
            assert found is not None
            assert found.rollout_correction == PUBLISHED
            for number, loss_fn in enumerate(("importance_sampling", "ppo", "importance_sampling"), 1):
                command = await passed(world, run, number, loss_fn)
                corrects = loss_fn == "importance_sampling"
                assert command.rollout_correction == (parse_rollout_correction(PUBLISHED) if corrects else None)
                assert ("mask" in command.data[0].loss_inputs) == corrects
            untouched = await passed(world, plain, 1)
            assert untouched.rollout_correction is None
            assert "mask" not in untouched.data[0].loss_inputs

    play(scene)


def test_it_outlives_the_server(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        expected = parse_rollout_correction(PUBLISHED)
        async with serve() as world:
            run = await new_run(world.alice, PUBLISHED)
            await passed(world, run, 1)
            world.worker.paused = True
            waiting = (await world.alice.pass_(run, 2, datum(**POLICY), loss_fn="importance_sampling")).json()
            folder = Path(shutil.copytree(tmp_path / "data", tmp_path / "killed", symlinks=True))
        async with serve(folder) as world:
            await world.alice.retrieve(waiting["request_id"])
            await passed(world, run, 3)
            passes = [command for command in world.worker.executed if isinstance(command, ForwardBackward)]
            assert [command.rollout_correction for command in passes] == [expected] * 3
            assert created(world.worker) == 1

    play(scene)


def test_a_bad_configuration_creates_nothing(serve: Serve) -> None:
    async def scene() -> None:
        bad: dict[str, Any] = {
            "rollout_rs": {**PUBLISHED, "rollout_rs": "sequence"},
            "rollout_rs_threshold": {**PUBLISHED, "rollout_rs_threshold": None},
            "bypass_mode": {**PUBLISHED, "bypass_mode": False},
            "rollout_is_threshold": {"rollout_is_threshold": "1_0.5"},
            "nonsense": {**PUBLISHED, "nonsense": 1},
        }
        async with serve() as world:
            session = await world.alice.session()
            for name, config in bad.items():
                response = await world.alice.post("create_model", body(session, config))
                answer = response.json()
                assert (response.status_code, answer["field"]) == (400, f"rollout_correction_config.{name}"), answer
            response = await world.alice.post("create_model", body(session, ["rollout_is"]))
            assert (response.status_code, response.json()["field"]) == (422, "rollout_correction_config")
            assert await stored(world, f"{session}:train:0") is None
            assert world.worker.times(CreateRun) == 0
            # the number is free for a request that is in order
            await world.alice.result("create_model", body(session, PUBLISHED))
            assert world.worker.times(CreateRun) == 1

    play(scene)


def test_a_datum_may_bring_its_own_mask(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await new_run(world.alice, PUBLISHED)
            bad = datum(**POLICY, mask=[1.0, 0.0])
            response = await world.alice.pass_(run, 1, datum(**POLICY), bad, loss_fn="importance_sampling")
            answer = response.json()
            assert (response.status_code, answer["field"], answer["datum"]) == (400, "data[1].loss_fn_inputs.mask", 1)
            good = datum(**POLICY, mask=[1.0, 0.0, 1.0])
            response = await world.alice.pass_(run, 2, datum(**POLICY), good, loss_fn="importance_sampling")
            await world.alice.retrieve(response.json()["request_id"])
            command = world.worker.executed[-1]
            assert isinstance(command, ForwardBackward)
            assert [d.loss_inputs["mask"].tolist() for d in command.data] == [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]

    play(scene)


# ---------------------------------------------------------------- runs that begin with a checkpoint


async def loaded(api: Api, path: str, **fields: Any) -> Any:
    body = {"session_id": await api.session(), "model_seq_id": 0, "path": path, **fields}
    return await api.post("load_weights", body)


async def checkpoint(world: World, run: str, kind: str = "save_weights") -> str:
    path: str = (await world.alice.result(kind, {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
    return path


@pytest.mark.parametrize("kind", ["save_weights", "save_weights_for_sampler"])
def test_a_run_of_a_checkpoint_has_the_correction_of_the_run_that_made_it(serve: Serve, kind: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await checkpoint(world, await new_run(world.alice, PUBLISHED), kind)
            copying = {"source_path": path, "destination_project_id": "archive"}
            copy = (await world.alice.ok("copy_weights", copying))["tinker_path"]
            other = {"rollout_is": "token"}
            for source, fields, expected in (
                (path, {}, PUBLISHED),
                (path, {"rollout_correction_config": other}, other),
                (path, {"rollout_correction_config": None}, None),
                (copy, {}, PUBLISHED),
            ):
                response = await loaded(world.alice, source, **fields)
                run = (await world.alice.retrieve(response.json()["request_id"]))["model_id"]
                found = await stored(world, run)
                assert found is not None
                assert found.rollout_correction == expected
                correction = (await passed(world, run, 1)).rollout_correction
                assert correction == (parse_rollout_correction(expected) if expected is not None else None)
            plain = await checkpoint(world, await world.alice.run())
            response = await loaded(world.alice, plain)
            run = (await world.alice.retrieve(response.json()["request_id"]))["model_id"]
            assert (await passed(world, run, 1)).rollout_correction is None

    play(scene)


def test_a_bad_configuration_loads_nothing(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await new_run(world.alice, PUBLISHED)
            path = await checkpoint(world, run)
            response = await loaded(world.alice, path, rollout_correction_config={"rollout_is": "word"})
            answer = response.json()
            assert (response.status_code, answer["field"]) == (400, "rollout_correction_config.rollout_is"), answer
            # a run that there is keeps the one it has
            body = {"model_id": run, "seq_id": 2, "path": path, "rollout_correction_config": {}}
            response = await world.alice.post("load_weights", body)
            assert (response.status_code, response.json()["field"]) == (400, "rollout_correction_config")
            assert world.worker.times(RestoreRun, LoadState) == 0
            assert (await passed(world, run, 3)).rollout_correction == parse_rollout_correction(PUBLISHED)

    play(scene)
