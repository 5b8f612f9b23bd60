"""However a request is refused, its number is spent and the run goes on; and every refusal can be read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mint.engine.core import ForwardBackward, OptimStep, ReverseKL, TrainStep
from mint.wire import messages_pb2 as pb

from .inprocess import PROTOBUF, Serve, World, datum, play
from .test_bodies import old_pass
from .test_reverse_kl import PATH as REVERSE_KL
from .test_reverse_kl import request as reverse_kl
from .test_train_step import content, csr, request
from .test_train_step import datum as json_datum

JSON = "application/json"
LONE = "\ud800"


async def send(world: World, path: str, body: object, media_type: str = JSON) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await world.alice.send("POST", path, content=raw, headers={"Content-Type": media_type})


async def goes_on(world: World, run: str, seq_id: int) -> None:
    """The run's next number is executed, which it would not be before the one that was refused."""
    assert "metrics" in await world.alice.step(run, seq_id)


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = {"a": value}
    return value


def passes(run: str, seq_id: int, **fields: Any) -> dict[str, dict[str, Any]]:
    """A good body of each kind that is read by hand or by a model, by its path, with more fields."""
    return {
        "forward_backward": {**old_pass("forward_backward_input", run, seq_id), **fields},
        "forward": {**old_pass("forward_input", run, seq_id), **fields},
        "train_step": {**request(run, seq_id), **fields},
        REVERSE_KL: {**reverse_kl(run, seq_id), **fields},
        "optim_step": {"model_id": run, "seq_id": seq_id, **fields},
        "save_weights": {"model_id": run, "seq_id": seq_id, "path": "a", **fields},
    }


@pytest.mark.parametrize("path", passes("", 1))
def test_text_that_is_no_unicode(serve: Serve, path: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for number, fields in enumerate(({"other": LONE}, {"other": ["x", {LONE: 1}]}), 1):
                response = await send(world, path, passes(run, number, **fields)[path])
                assert response.status_code in (400, 422), response.text
                assert response.json()["field"] == "body"
            # both halves of a pair are a character like any other
            good = await send(world, path, passes(run, 3, other="\U0001f600")[path])
            assert good.status_code == 200, good.text
            await goes_on(world, run, 4)

    play(scene)


@pytest.mark.parametrize("path", passes("", 1))
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_other_encodings_than_utf_8(serve: Serve, path: str, encoding: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            response = await send(world, path, json.dumps(passes(run, 1)[path]).encode(encoding))
            assert response.status_code in (400, 422), response.text
            assert response.json()["field"] == "body"
            await goes_on(world, run, 2)

    play(scene)


@pytest.mark.parametrize("path", passes("", 1))
def test_a_refused_request_with_a_field_that_nests_deep(serve: Serve, path: str) -> None:
    """Deeper than one of the two JSON parsers goes."""

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            bad = passes(run, 1, other=deep(500))[path]
            bad |= {"temperature": -1, "adam_params": {"beta1": 2}, "path": "/"}
            bad |= {"forward_backward_input": content(loss_fn="?")} if path == "forward_backward" else {}
            bad |= {"forward_input": content(loss_fn="?")} if path == "forward" else {}
            response = await send(world, path, bad)
            assert response.status_code in (400, 422), response.text
            await goes_on(world, run, 2)

    play(scene)


@pytest.mark.parametrize("path", ["forward_backward", "forward", "train_step", REVERSE_KL])
def test_what_is_said_to_be_something_else(serve: Serve, path: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            message = pb.ForwardBackwardRequest(model_id=run, seq_id=2, data=[datum()], loss_fn="cross_entropy")
            for body, media_type in (
                (passes(run, 1)[path], PROTOBUF),
                (message.SerializeToString(), JSON),
                (passes(run, 3)[path], "text/plain"),
                (passes(run, 4)[path], ""),
            ):
                response = await send(world, path, body, media_type)
                assert response.status_code == 400, (media_type, response.text)
                assert response.json()["field"] in ("body", "Content-Type")
            await goes_on(world, run, 5)
            assert world.worker.times(ForwardBackward, TrainStep, ReverseKL) == 0

    play(scene)


def test_a_number_that_came_as_text(serve: Serve) -> None:
    """As the models of optim_step and the like take it."""

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            response = await send(world, "save_weights", {"model_id": run, "seq_id": "1", "path": "/"})
            assert (response.status_code, response.json()["field"]) == (422, "path")
            await goes_on(world, run, 2)

    play(scene)


def test_a_number_is_its_owners_to_spend(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for body in (json.dumps(request(run, 1)).encode("utf-16"), b'{"model_id": "\\ud800", "seq_id": 1}'):
                headers = {"Content-Type": JSON}
                response = await world.bob.send("POST", "train_step", content=body, headers=headers)
                assert response.status_code == 400
            await goes_on(world, run, 1)
            assert world.worker.times(OptimStep) == 1

    play(scene)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("create_session", {"display_name": LONE}),
        ("create_session", {"tags": [LONE]}),
        ("create_session", {"tags": LONE}),
        ("session_heartbeat", {"session_id": LONE}),
        ("retrieve_future", {"request_id": LONE}),
        ("get_info", {"model_id": LONE}),
        ("create_sampling_session", {"session_id": LONE, "sampling_session_seq_id": 0, "base_model": LONE}),
        ("asample", {"sampling_session_id": LONE, "prompt": {"chunks": [{"tokens": [1]}]}}),
        ("create_custom_loss", {"session_id": LONE}),
    ],
)
def test_no_route_fails_for_such_text(serve: Serve, path: str, body: dict[str, Any]) -> None:
    async def scene() -> None:
        async with serve() as world:
            response = await send(world, path, body)
            assert response.status_code < 500, response.text
            assert path == "create_session" or response.status_code >= 400

    play(scene)


def test_refusals_are_short(serve: Serve) -> None:
    """They are journaled, and asked for again and again."""

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            long = "x" * 1_000_000
            for number, body in enumerate(
                (
                    content(loss_fn=long),
                    content(loss_fn_config={long: "1"}),
                    content(loss_fn="ppo", loss_fn_config={long: [1]}),
                    content(json_datum(**{long: {"data": [True], "dtype": "float32"}})),
                    content(json_datum(weights={"data": [1], "dtype": long})),
                ),
                1,
            ):
                response = await send(world, "train_step", request(run, number, forward_backward_input=body))
                assert response.status_code == 400, response.text[:200]
                assert len(response.content) < 3000
                assert "x" * 50 in response.json()["detail"] or number == 5
            named = await send(world, "save_weights", {"model_id": run, "seq_id": 6, "path": long})
            assert (named.status_code, len(named.content) < 3000) == (422, True)
            unread = await send(world, "session_heartbeat", {"session_id": [long]})
            assert (unread.status_code, len(unread.content) < 3000) == (422, True)
            await goes_on(world, run, 7)

    play(scene)


# surrogates too: JSON can say them, and Python's text can hold them
TEXT = st.text(st.characters(exclude_categories=()), max_size=4)
LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


def with_value(run: str, number: int, place: str, value: Any) -> tuple[str, dict[str, Any]]:
    match place.split("."):
        case ["csr", name]:
            body = content(json_datum(weights=csr(**{name: value})))
            return "train_step", request(run, number, forward_backward_input=body)
        case ["pass", name]:
            return "train_step", request(run, number, forward_backward_input=content(**{name: value}))
        case ["adam", name]:
            return "train_step", request(run, number, adam_params={name: value})
        case ["step", name]:
            return "train_step", request(run, number, **{name: value})
        case ["kl", name]:
            return REVERSE_KL, reverse_kl(run, number, **{name: value})
        case _:
            return place, {"model_id": run, "seq_id": number, "path": "a", "other": value}


PLACES = (
    *(f"csr.{name}" for name in ("data", "shape", "sparse_crow_indices", "sparse_col_indices", "dtype")),
    *(f"pass.{name}" for name in ("data", "loss_fn", "loss_fn_config", "other")),
    *(f"adam.{name}" for name in ("learning_rate", "type", "other")),
    *(f"step.{name}" for name in ("adam_params", "optimizer_params", "forward_backward_input", "other")),
    *(f"kl.{name}" for name in ("data", "temperature", "reference_model_path", "other")),
    *("optim_step", "save_weights"),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=20, max_size=40))
def test_any_value_in_any_place_is_answered_and_the_run_goes_on(serve: Serve, sent: list[tuple[str, Any]]) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for number, (place, value) in enumerate(sent):
                response = await send(world, *with_value(run, 2 * number + 1, place, value))
                assert response.status_code < 500, (place, response.text)
                async with asyncio.timeout(5):
                    await goes_on(world, run, 2 * number + 2)

    play(scene)
