"""Keys: each is a tenant, and sees nothing of another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mint.errors import MintError
from mint.server.auth import generate_key, given_key, secret_of

from .inprocess import MODEL, Serve, play

OPEN = {"/api/v1/healthz", "/healthz", "/readyz"}


def test_no_route_without_a_good_key(serve: Serve) -> None:
    bad_keys: list[dict[str, bytes]] = [
        {},
        {"X-API-Key": b""},
        {"X-API-Key": b"sk-wrong-secret"},
        {"X-API-Key": "é".encode()},
        {"Authorization": b"Basic x"},
    ]

    async def scene() -> None:
        async with serve() as world:
            routes = [(method, path) for path, item in world.app.openapi()["paths"].items() for method in item]
            assert len(routes) > 15
            for method, path in routes:
                for headers in bad_keys if path not in OPEN else ():
                    response = await world.alice.http.request(method, path, content=b"{}", headers=headers)
                    assert (response.status_code, response.json()["type"]) == (401, "AuthenticationError"), path

    play(scene)


def test_a_stranger_is_refused_on_every_object(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run, sampler = await world.alice.run(session), await world.alice.sampler(session)
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            mine, my_run = await world.bob.session(), await world.bob.run()
            lora = {"base_model": MODEL, "lora_config": {"rank": 4}}
            sample = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}
            attempts: list[tuple[str, dict[str, Any]]] = [
                ("session_heartbeat", {"session_id": session}),
                (f"sessions/{session}/finish", {}),
                ("create_model", {"session_id": session, "model_seq_id": 1, **lora}),
                ("create_model", {"session_id": session, "model_seq_id": 0, **lora}),
                ("get_info", {"model_id": run}),
                ("optim_step", {"model_id": run, "seq_id": 1}),
                ("optim_step", {"model_id": run, "seq_id": 2}),
                ("save_weights", {"model_id": run, "seq_id": 2, "path": "b"}),
                ("save_weights_for_sampler", {"model_id": run, "seq_id": 2, "path": "b"}),
                ("save_weights_for_sampler", {"model_id": run, "seq_id": 2, "sampling_session_seq_id": 5}),
                ("load_weights", {"model_id": run, "seq_id": 2, "path": path}),
                ("load_weights", {"model_id": my_run, "seq_id": 1, "path": path}),
                ("load_weights", {"session_id": mine, "model_seq_id": 9, "path": path}),
                ("load_weights", {"session_id": session, "model_seq_id": 9, "path": path}),
                ("create_sampling_session", {"session_id": session, "sampling_session_seq_id": 1, "base_model": MODEL}),
                ("create_sampling_session", {"session_id": mine, "sampling_session_seq_id": 1, "model_path": path}),
                ("asample", {"sampling_session_id": sampler, **sample}),
            ]
            for route, body in attempts:
                response = await world.bob.post(route, body)
                assert response.status_code == 403, (route, response.text)
            assert (await world.bob.send("GET", f"samplers/{sampler}")).status_code == 403
            assert (await world.bob.pass_(run, 2)).status_code == 403
            # nothing of this spent a number of mine
            await world.alice.step(run, 2)

    play(scene)


def test_both_forms_of_a_key_are_one_tenant(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            for headers in (
                {"X-API-Key": "tml-alice-secret"},
                {"X-API-Key": "", "Authorization": "Bearer sk-alice-secret"},
            ):
                await world.alice.ok("session_heartbeat", {"session_id": session}, headers=headers)

    play(scene)


def test_a_made_key_is_a_key() -> None:
    key = generate_key()
    assert secret_of(key) == key.removeprefix("sk-")
    assert generate_key() != key
    assert secret_of("sk-") is None
    given = given_key(key)
    assert given == replace(given_key(f"tml-{secret_of(key)}"), created_at=given.created_at)
    assert key.removeprefix("sk-") not in repr(given)


@pytest.mark.parametrize("key", ["", "sk-", "sk-short", "pk-long-enough", "long-enough", "sk-with space in it"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(MintError, match="sk-SECRET"):
        given_key(key)
