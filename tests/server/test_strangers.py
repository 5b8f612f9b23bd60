"""A stranger's key on every route that shows or changes what is somebody's: nothing is shown, nothing is changed."""

from __future__ import annotations

from typing import Any

from .inprocess import Serve, World, play
from .test_checkpoints import saved

ONE = "/training_runs/{run_id}/checkpoints/{segment}/{name}"
COPY = {"source_path": "{path}", "destination_project_id": "p"}
REFUSED: dict[tuple[str, str], Any] = {
    ("get", "/training_runs/{run_id}"): None,
    ("get", "/training_runs/{run_id}/checkpoints"): None,
    ("delete", ONE): None,
    ("post", f"{ONE}/publish"): None,
    ("delete", f"{ONE}/publish"): None,
    ("put", f"{ONE}/ttl"): {"ttl_seconds": 3600},
    ("post", "/weights_info"): {"tinker_path": "{path}"},
    ("post", "/copy_weights"): COPY,
    ("get", "/sessions/{session_id}"): None,
    ("get", "/sessions/{session_id}/trace_export"): None,
    ("put", "/sessions/{session_id}/project"): {"project_id": "p"},
    ("post", "/sessions/{session_id}/finish"): {},
    ("get", "/samplers/{sampler_id}"): None,
}
"""Routes that name an object, with bodies that a stranger might send."""
LISTS: dict[tuple[str, str], Any] = {
    ("get", "/training_runs"): None,
    ("get", "/checkpoints"): None,
    ("get", "/sessions"): None,
    ("post", "/sessions/search"): {},
    ("get", "/billing/usage/checkpoints/current"): None,
}
NOUNS = ("/training_runs", "/checkpoints", "/sessions", "/samplers", "/weights_info", "/copy_weights", "/billing")


async def objects(world: World) -> dict[str, str]:
    """One of each kind, of Alice's."""
    session = await world.alice.session()
    run = await world.alice.run(session)
    path = await saved(world.alice, run, 1, "mine")
    sampler = await world.alice.sampler(session)
    names = {"run_id": run, "session_id": session, "sampler_id": sampler, "path": path}
    return {**names, "segment": "weights", "name": "mine"}


def filled(body: Any, names: dict[str, str]) -> Any:
    if not isinstance(body, dict):
        return body
    return {key: value.format(**names) if isinstance(value, str) else value for key, value in body.items()}


async def state(world: World) -> list[Any]:
    """All that Alice can see."""
    views = [(await world.alice.send(*route)).json() for route in (("GET", "training_runs"), ("GET", "checkpoints"))]
    return [*views, await world.alice.ok("sessions/search")]


def test_every_route_of_these_nouns_is_walked(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            paths = world.app.openapi()["paths"]
            routes = {(method, path.removeprefix("/api/v1")) for path, item in paths.items() for method in item}
            assert {route for route in routes if route[1].startswith(NOUNS)} == {*REFUSED, *LISTS}

    play(scene)


def test_a_stranger_is_refused(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            names = await objects(world)
            before = await state(world)
            for (method, path), body in REFUSED.items():
                for scope in ("owned", "accessible"):
                    response = await world.bob.send(
                        method, path[1:].format(**names), json=filled(body, names), params={"access_scope": scope}
                    )
                    assert response.status_code == 403, (method, path, response.text)
                    assert response.json()["type"] == "PermissionDeniedError"
            assert await state(world) == before

    play(scene)


def test_a_strangers_lists_are_empty(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            names = await objects(world)
            for (method, path), body in LISTS.items():
                for query in ({}, {"access_scope": "accessible"}, {"project_id": "default"}):
                    mine = await world.alice.send(method, path[1:], json=body, params=query)
                    theirs = await world.bob.send(method, path[1:], json=body, params=query)
                    assert (mine.status_code, theirs.status_code) == (200, 200)
                    assert not [name for name in names.values() if len(name) > 8 and name in theirs.text], path
                    assert len(mine.text) > len(theirs.text), path

    play(scene)
