"""Odd values in the fields of good requests: a refusal that says why, never an error of the server."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import Any

from .inprocess import MODEL, Serve, World
from .objects import LORA, LOSS, PASS, REVERSE_KL, SAMPLE, Objects

ODD: tuple[Any, ...] = (None, True, -1, 10**400, 1.5, 1e308, "", "x" * 10_000, "../a", "a\0b", "é\u202e", "\ud800")
ODD += ([[]], {"": {}}, [None], {"\ud800": "\ud800"})
NESTED = "[" * 100_000, '{"a":' * 100_000, '{"session_id": ' + "[" * 5000 + "]" * 5000 + "}"


def bodies(mine: Objects) -> dict[str, dict[str, Any]]:
    """A good request of each route that reads JSON."""
    run = {"model_id": mine.run, "seq_id": 1000}
    adam = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    save = {"path": "b", "ttl_seconds": 3600, "overwrite": False, "user_metadata": {"a": "b"}}
    about = {"tags": ["a"], "user_metadata": {"a": "b"}, "project_id": "p", "display_name": "d", "sdk_version": "1"}
    return {
        "client/config": {"sdk_version": "0.38.0"},
        "client/dynamic_config": {},
        "telemetry": {"events": [], "session_id": "s", "sdk_version": "1"},
        "create_session": about,
        "session_heartbeat": {"session_id": mine.session},
        "get_info": {"model_id": mine.run},
        "create_model": {"session_id": mine.session, "model_seq_id": 1, **LORA, "user_metadata": {"a": "b"}},
        "create_custom_loss": {"session_id": mine.session, **LOSS, "custom_loss_seq_id": 1},
        "forward_backward": {**run, "forward_backward_input": {**PASS, "loss_fn_config": {"a": 1.0}}},
        "forward": {**run, "forward_input": PASS},
        "optim_step": {**run, "adam_params": adam},
        "train_step": {**run, "forward_backward_input": PASS, "adam_params": adam},
        "mint/forward_backward_reverse_kl": {
            **run,
            **REVERSE_KL,
            "reference_model_path": mine.path,
            "temperature": 1.0,
        },
        "save_weights": {**run, **save},
        "save_weights_for_sampler": {**run, **save, "sampling_session_seq_id": 7, "kind": "snapshot"},
        "save_weights_external": {**run, **save, "age_encryption_recipients": None},
        "load_weights": {**run, "path": mine.path, "optimizer": True, "session_id": mine.session, "model_seq_id": 5},
        "create_sampling_session": {
            "session_id": mine.session,
            "sampling_session_seq_id": 1,
            "base_model": MODEL,
            "model_path": mine.path,
        },
        "join_sampling_session": {"sampling_session_id": mine.sampler},
        "asample": {"sampling_session_id": mine.sampler, "seq_id": 7, "num_samples": 1, **SAMPLE},
        "retrieve_future": {"request_id": mine.request, "allow_metadata_only": False},
        "cancel_future": {"request_id": mine.request},
        "weights_info": {"tinker_path": mine.path},
        "copy_weights": {
            "source_path": mine.path,
            "destination_project_id": "p",
            "session_id": mine.session,
            "model_seq_id": 6,
            "ttl_seconds": 3600,
        },
        "sessions/search": {
            "session_id": "s",
            "display_name": "d",
            "project_ids": ["p"],
            "user_metadata": {"a": "b"},
            "owner": {"type": "user", "owner_urns": ["o"]},
            "statuses": [{"type": "client_finished", "reasons": ["success"]}],
            "limit": 1,
            "cursor": {"last_session_id": mine.session},
        },
        f"sessions/{mine.session}/finish": {"reason": {"type": "success"}, "detail": "d"},  # last: it ends the session
    }


def variants(body: Any) -> list[Any]:
    """The body with one of its values, at any depth, replaced by something odd or left out."""
    found: list[Any] = list(ODD)
    if isinstance(body, dict):
        for name, value in body.items():
            found += [{**body, name: odd} for odd in variants(value)]
            found.append({key: each for key, each in body.items() if key != name})
        found.append({**body, "\ud800": 1, "": None})
    elif isinstance(body, list) and body:
        found += [[odd, *body[1:]] for odd in variants(body[0])]
    return found


async def send(world: World, route: str, content: bytes) -> int:
    headers = {"Content-Type": "application/json"}
    response = await world.alice.send("POST", route, content=content, headers=headers)
    assert response.status_code < 500, (route, content[:300], response.text)
    if response.status_code >= 400:
        assert isinstance(response.json()["detail"], str)
    return response.status_code


def test_odd_values_are_refused_or_taken(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            mine, numbers = await Objects.of(world.alice), count(1000)
            statuses = []
            for route, body in bodies(mine).items():
                for variant in variants(body):
                    if isinstance(variant, dict) and variant.get("seq_id") == 1000:
                        variant["seq_id"] = next(numbers)
                    statuses.append(await send(world, route, json.dumps(variant).encode()))
                statuses += [await send(world, route, text.encode()) for text in NESTED]
            assert statuses.count(422) > 500
            assert statuses.count(200) > 100
            run = await world.alice.run()
            await world.alice.step(run, 1)

    asyncio.run(scene())


def test_odd_paths_and_queries(serve: Serve) -> None:
    texts = ("%00", "%ff", "%ed%a0%80", "..%2f..%2fetc%2fpasswd", "%F0%9F%A6%8A", "a" * 5000, "%20", "'%3B--")

    async def scene() -> None:
        async with serve() as world:
            for text in texts:
                for method, path in (
                    ("GET", f"samplers/{text}"),
                    ("POST", f"sessions/{text}/finish"),
                    ("GET", f"sessions/{text}/trace_export"),
                    ("GET", f"traces/{text}?expires={text}&signature={text}"),
                    ("GET", f"training_runs/{text}/checkpoints"),
                    ("GET", f"training_runs?project_id={text}&limit={text}"),
                    ("DELETE", f"training_runs/{text}/checkpoints/weights/{text}"),
                    ("GET", f"audit?day={text}"),
                    ("GET", f"billing/usage/events?starting_on={text}&ending_before={text}"),
                    ("GET", f"billing/usage/checkpoints/current?project_id={text}"),
                ):
                    response = await world.alice.send(method, path)
                    assert response.status_code < 500, (path, response.text)

    asyncio.run(scene())
