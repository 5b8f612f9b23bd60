"""Keys: what one is, and that each is a tenant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mint.errors import MintError
from mint.server.auth import generate_key, given_key, secret_of

from .inprocess import ON_BOTH, Serve, play


@ON_BOTH
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
    # databases have this owner: it may never read otherwise
    assert given_key("sk-alice-secret").owner == "key-0c848abb03307b06"


@pytest.mark.parametrize("key", ["", "sk-", "sk-short", "pk-long-enough", "long-enough", "sk-with space in it"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(MintError, match="sk-SECRET"):
        given_key(key)
