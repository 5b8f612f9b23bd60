"""What the settings of a step may be, and which optimizers there are."""

from __future__ import annotations

from typing import Any

import pytest

from mint.engine.core import AdamParams, OptimStep, TrainStep

from .inprocess import MODEL, Serve, play
from .test_train_step import request

SETTINGS = [
    *(
        (name, value)
        for name in ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")
        for value in ("NaN", "Infinity", "-Infinity", "1e39", "1" + "0" * 400, "null", '"0.5"', "true", "[]")
    ),
    *((name, "-1e-9") for name in ("learning_rate", "beta1", "beta2", "eps", "weight_decay")),
    *((name, "1") for name in ("beta1", "beta2")),
    ("eps", "0"),
    ("eps", "1e-45"),
]


@pytest.mark.parametrize("path", ["optim_step", "train_step"])
def test_every_setting_has_its_bounds(serve: Serve, path: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for number, (name, value) in enumerate(SETTINGS, start=1):
                data = '{"data": [], "loss_fn": "cross_entropy"}'  # refused as well, but later
                settings = f'{{"{name}": {value}}}'
                body = f'{{"model_id": "{run}", "seq_id": {number}, "forward_backward_input": {data}, "adam_params": '
                headers = {"Content-Type": "application/json"}
                response = await world.alice.send("POST", path, content=f"{body}{settings}}}", headers=headers)
                answer = response.json()
                assert (response.status_code, answer["field"]) == (422, f"adam_params.{name}"), (name, value, answer)
            assert world.worker.times(OptimStep, TrainStep) == 0
            await world.alice.step(run, len(SETTINGS) + 1)

    play(scene)


def test_what_is_left_out_has_the_documented_default(serve: Serve) -> None:
    from tinker import types

    documented = types.AdamParams()

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            edge = {"learning_rate": 0, "beta1": 0, "beta2": 0, "eps": 1e-38, "weight_decay": 0, "grad_clip_norm": -1}
            for number, params in enumerate(({}, {"adam_params": {}}, {"adam_params": None}, {"adam_params": edge}), 1):
                await world.alice.result("optim_step", {"model_id": run, "seq_id": number, **params})
            *defaults, last = (each.adam for each in world.worker.executed if isinstance(each, OptimStep))
            assert defaults == [AdamParams(**documented.model_dump())] * 3
            assert last == AdamParams(0.0, 0.0, 0.0, 1e-38, 0.0, 0.0), "a negative norm clips no more than 0 does"

    play(scene)


OPTIMIZERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "dimuon": ({"type": "dimuon", "version": 1}, ("'dimuon'", "not public", "adamw")),
    "unknown": ({"type": "sgd"}, ("'sgd'", "adamw")),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimizer_is_refused_by_name_and_with_the_reason(serve: Serve, name: str) -> None:
    config, words = OPTIMIZERS[name]

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            session = await world.alice.session()
            create = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 4}}
            response = await world.alice.post("create_model", {**create, "optimizer_config": config})
            refused = [(response, "optimizer_config.type")]
            saved = await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            load = {"session_id": session, "model_seq_id": 0, "path": saved["path"], "optimizer_config": config}
            refused.append((await world.alice.post("load_weights", load), "optimizer_config.type"))
            for number, path in enumerate(("optim_step", "train_step"), 2):
                response = await world.alice.post(path, request(run, number, optimizer_params=config))
                refused.append((response, "optimizer_params.type"))
            for response, field in refused:
                answer = response.json()
                assert (response.status_code, answer["field"]) == (400, field)
                assert all(word in answer["detail"] for word in words), answer["detail"]
            await world.alice.run(session)
            await world.alice.step(run, 4)

    play(scene)


def test_settings_in_the_wrong_place(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            good = {"adam_params": {"learning_rate": 1.0}}
            for number, (params, field) in enumerate(
                (
                    ({"optimizer_params": {"type": "adamw", "learning_rate": 1.0}}, "optimizer_params"),
                    ({"optimizer_params": {"type": "dimuon"}, **good}, "optimizer_params.type"),
                    ({"optimizer_params": {}}, "optimizer_params.type"),
                    ({"optimizer_params": {"type": ["x" * 1000]}}, "optimizer_params.type"),
                ),
                1,
            ):
                response = await world.alice.post("optim_step", {"model_id": run, "seq_id": number, **params})
                assert (response.status_code, response.json()["field"]) == (400, field), response.text
                assert len(response.text) < 400
            assert world.worker.times(OptimStep) == 0

    play(scene)
