"""Weights access tokens: what they open, and when they end."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from mint.store import weights_tokens

from .inprocess import ON_BOTH, Api, Serve, World, play
from .test_checkpoints import saved, status, url

HEADER = "X-Tinker-Weights-Access-Token"


async def token_for(api: Api, path: str, **fields: Any) -> dict[str, Any]:
    answer = await api.post(url(path, "/access_tokens"), fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def can_load(api: Api, path: str, token: str) -> bool:
    """As a new run; a refusal names the token."""
    body = {"session_id": await api.session(), "model_seq_id": 0, "path": path, "weights_access_token": token}
    answer = await api.post("load_weights", body)
    if answer.status_code == 200:
        assert "model_id" in await api.retrieve(answer.json()["request_id"])
        return True
    assert (answer.status_code, answer.json()["field"]) == (403, "weights_access_token"), answer.text
    return False


async def can_copy(api: Api, path: str, token: str) -> bool:
    body = {"source_path": path, "destination_project_id": "p"}
    return (await api.post("copy_weights", body, headers={HEADER: token})).status_code == 200


async def can_download(api: Api, path: str, token: str) -> bool:
    return await status(api, "GET", path, "/archive", headers={HEADER: token}) == 302


async def opens(api: Api, path: str, token: str) -> set[bool]:
    return {await can(api, path, token) for can in (can_load, can_copy, can_download)}


def test_a_token_opens_its_checkpoint_and_no_other(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path, other = await saved(world.alice, run, 1), await saved(world.alice, run, 2, "b")
            made = await token_for(world.alice, path)
            assert made["weights_access_token"].startswith("tml-")
            assert made["expires_at"] is None
            assert await opens(world.bob, path, made["weights_access_token"]) == {True}
            assert await opens(world.bob, other, made["weights_access_token"]) == {False}
            assert await opens(world.bob, path, "tml-weights-nonsense") == {False}
            assert await opens(world.alice, path, "of no use to its owner") == {True}
            assert (
                await world.bob.send("GET", "checkpoints", headers={"X-API-Key": made["weights_access_token"]})
            ).status_code == 401, "it is no key"

    play(scene)


def test_a_token_ends(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = await saved(world.alice, run, 1)
            revoked, short, kept = [
                await token_for(world.alice, path, **ttl) for ttl in ({}, {"ttl_seconds": 3600}, {})
            ]
            listed = (await world.alice.send("GET", url(path, "/access_tokens"))).json()["access_tokens"]
            assert [row["token_id"] for row in listed] == [row["token_id"] for row in (revoked, short, kept)]
            assert "weights_access_token" not in listed[0]
            place = f"/access_tokens/{revoked['token_id']}"
            assert await status(world.bob, "DELETE", path, place) == 403
            assert await status(world.alice, "DELETE", path, place) == 204
            assert await status(world.alice, "DELETE", path, place) == 404
            assert await opens(world.bob, path, revoked["weights_access_token"]) == {False}
            assert await opens(world.bob, path, short["weights_access_token"]) == {True}
            later = weights_tokens.time() + 3601
            with monkeypatch.context() as patch:
                patch.setattr(weights_tokens, "time", lambda: later)
                assert await opens(world.bob, path, short["weights_access_token"]) == {False}
                assert await opens(world.bob, path, kept["weights_access_token"]) == {True}
            await saved(world.alice, run, 2, "a", overwrite=True)
            assert await opens(world.bob, path, kept["weights_access_token"]) == {False}, "these are other weights"
            assert (await world.alice.send("GET", url(path, "/access_tokens"))).json() == {"access_tokens": []}

    play(scene)


@ON_BOTH
def test_what_is_no_token_of_it(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            for token_id, code in ((1, 404), (2**31 - 1, 404), (2**31, 422), (10**20, 422), (0, 422), ("a", 422)):
                answer = await world.alice.send("DELETE", url(path, f"/access_tokens/{token_id}"))
                field = "token_id" if code == 404 else "path.token_id"
                assert (answer.status_code, answer.json()["field"]) == (code, field), answer.text

    play(scene)


def test_no_secret_is_written_down(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            secret = (await token_for(world.alice, path))["weights_access_token"]
            assert await opens(world.bob, path, secret) == {True}
            body = {"source_path": path, "destination_project_id": "p", "weights_access_token": secret}
            assert (await world.bob.post("copy_weights", body)).status_code == 200
            await _look_for(world, secret.removeprefix("tml-"))

    async def _look_for(world: World, secret: str) -> None:
        for table in ("operations", "audit_log", "weights_tokens", "sessions"):
            rows = await world.services.database.transaction(
                lambda c, t=table: c.execute(text(f"SELECT * FROM {t}")).all()
            )
            assert rows
            assert secret not in repr(rows), table

    play(scene)


def test_what_was_loaded_with_a_token_is_replayed_without_it(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            made = await token_for(world.alice, path)
            body = {
                "session_id": await world.bob.session(),
                "model_seq_id": 0,
                "path": path,
                "weights_access_token": made["weights_access_token"],
                "rollout_correction_config": None,
            }
            request = (await world.bob.ok("load_weights", body))["request_id"]
            run = (await world.bob.retrieve(request))["model_id"]
            assert await status(world.alice, "DELETE", path, f"/access_tokens/{made['token_id']}") == 204
        async with serve() as world:
            await world.bob.step(run, 1)
            assert run in world.worker.runs

    play(scene)
