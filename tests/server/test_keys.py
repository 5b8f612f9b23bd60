"""Keys of the database beside a running server, and the tokens that stand for them."""

from __future__ import annotations

import asyncio
import base64
import json
from time import time

import jwt
import pytest
from sqlalchemy.exc import OperationalError

from mint.server import auth, tokens
from mint.server.auth import LOOK_SECONDS
from mint.store import keys
from mint.store.keys import Role

from .inprocess import ADMIN, ALICE, Api, Serve, World, play
from .key_rows import add, beside, look

KEY = "sk-made-beside"
INVALID = 'Bearer error="invalid_token"'


async def refused(api: Api) -> str:
    """Why, and how the client is challenged."""
    response = await api.send("GET", "get_server_capabilities")
    assert response.status_code == 401, response.text
    return f"{response.headers['www-authenticate']}: {response.json()['detail']}"


async def token_of(api: Api) -> Api:
    return Api(api.http, (await api.ok("auth/token"))["jwt"])


def test_a_key_holds_within_a_second_of_being_made_and_no_longer_than_it_is_revoked(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made = Api(world.alice.http, KEY)
            assert "does not know" in await refused(made)
            _, key = await add(world, KEY)
            session = await made.session()
            await beside(world, lambda c: keys.revoke(c, key.key_id))
            await asyncio.sleep(LOOK_SECONDS)
            assert await refused(made) == "Bearer: the API key that was sent was revoked"
            # what its owner has is there for the owner's next key
            other, _ = await add(world, "sk-another-of-lab")
            await other.ok("session_heartbeat", {"session_id": session})

    play(scene)


def test_requests_between_two_looks_ask_no_database(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def scene() -> None:
        async with serve() as world:
            await world.alice.ok("telemetry")
            changed_since = keys.changed_since
            monkeypatch.setattr(keys, "changed_since", lambda *a, **k: asked.append(1) or changed_since(*a, **k))
            for _ in range(20):
                await world.alice.ok("telemetry")
            assert not asked
            await look(world)
            await asyncio.gather(*(world.alice.ok("telemetry") for _ in range(20)))
            assert len(asked) == 1

    play(scene)


def test_keys_hold_on_while_the_database_does_not_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY)
            await made.ok("telemetry")
            await look(world)

            def locked(*_: object, **__: object) -> None:
                raise OperationalError("", {}, Exception("locked"))

            with monkeypatch.context() as patch:
                patch.setattr(keys, "changed_since", locked)
                await made.ok("telemetry")

    play(scene)


def test_an_expired_key_is_told(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, _ = await add(world, KEY, expires_at=time() + 0.3)
            token = await token_of(made)
            await token.ok("telemetry")
            await asyncio.sleep(0.3)
            assert await refused(made) == "Bearer: the API key that was sent has expired"
            assert (await refused(token)).startswith(INVALID)

    play(scene)


def test_an_owner_outlives_the_way_its_key_was_given(serve: Serve) -> None:
    """What a key of the command line has made can be handed to one of the database."""

    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            other, _ = await add(world, KEY, owner=auth.given_key(ALICE).owner)
            await other.ok("session_heartbeat", {"session_id": session})
            assert (await world.bob.post("session_heartbeat", {"session_id": session})).status_code == 403

    play(scene)


def test_a_token_stands_for_its_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, key = await add(world, KEY, owner="ada@lab.org")
            token = await token_of(made)
            claims = jwt.decode(token.key, options={"verify_signature": False})
            assert claims["exp"] - claims["iat"] == 3600
            whose = {"sub": "ada@lab.org", "org_id": "ada@lab.org", "email": "ada@lab.org", "key_id": key.key_id}
            assert claims.items() >= whose.items()
            session = await token.session()
            await made.ok("session_heartbeat", {"session_id": session})
            # also as a bearer, and again for itself: it does not live longer for that
            headers = {"X-API-Key": "", "Authorization": f"Bearer {token.key}"}
            await made.ok("session_heartbeat", {"session_id": session}, headers=headers)
            with monkeypatch.context() as patch:
                patch.setattr(tokens, "time", lambda: time() + 60)
                assert (await token_of(token)).key == token.key
                assert (await token_of(made)).key != token.key
            await beside(world, lambda c: keys.revoke(c, key.key_id))
            await look(world)
            assert (await refused(token)).startswith(INVALID)

    play(scene)


def test_a_token_outlives_a_restart_and_not_its_hour(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            token = await token_of(world.alice)
            with monkeypatch.context() as patch:
                patch.setattr(tokens, "LIFETIME_SECONDS", -1)
                old = await token_of(world.alice)
        async with serve(api_keys=("sk-another-key", ALICE)) as world:
            token = Api(world.alice.http, token.key)
            await world.alice.ok("session_heartbeat", {"session_id": await token.session()})
            assert (await refused(Api(world.alice.http, old.key))).startswith(INVALID)
        async with serve(api_keys=("sk-another-key",)) as world:
            assert (await refused(Api(world.alice.http, token.key))).startswith(INVALID)

    play(scene)


def test_what_is_no_token_of_ours(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            good = (await token_of(world.alice)).key
            claims = jwt.decode(good, options={"verify_signature": False})
            header, body, signature = good.split(".")
            none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
            admin = base64.urlsafe_b64encode(json.dumps({**claims, "key_id": 1}).encode()).rstrip(b"=").decode()
            secret = world.services.tokens._secret
            forged = [
                "eyJ",
                "eyJ.eyJ.eyJ",
                f"{header}.{admin}.{signature}",
                f"{none}.{body}.",
                f"{header}.{body}.{signature[:-4]}AAAA",
                jwt.encode(claims, "another secret of sufficient length for it", "HS256"),
                jwt.encode({name: claims[name] for name in ("iat", "sub", "key_id")}, secret, "HS256"),
            ]
            for token in forged:
                assert (await refused(Api(world.alice.http, token))).startswith(INVALID), token
            await Api(world.alice.http, good).ok("telemetry")

    play(scene)


def test_a_key_says_who_it_is_and_ends_itself(serve: Serve) -> None:
    async def me(world: World, api: Api, method: str = "GET") -> int:
        return (await api.send(method, "auth/apikey/me")).status_code

    async def scene() -> None:
        async with serve() as world:
            made, key = await add(world, KEY, note="laptop")
            other, _ = await add(world, "sk-another-of-lab")
            answer = (await made.send("GET", "auth/apikey/me")).json()
            details = {"org_details": {"name": "lab"}, "user_details": {"email": "lab"}}
            assert answer == {"key_id": key.key_id, "name": "laptop", "note": "laptop", "details": details}
            assert await me(world, made, "DELETE") == 204
            assert await me(world, made) == 401
            assert await me(world, other) == 200
            # one of the command line is told how it ends
            assert await me(world, world.alice, "DELETE") == 400
            assert await me(world, world.alice) == 200

    play(scene)


def test_an_admin_has_no_way_to_the_objects_of_others(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            assert (await world.admin.post("get_info", {"model_id": run})).status_code == 403
            made, _ = await add(world, KEY, role=Role.ADMIN)
            assert (await made.post("optim_step", {"model_id": run, "seq_id": 1})).status_code == 403
            await world.alice.step(run, 1)
            assert world.admin.key == ADMIN

    play(scene)
