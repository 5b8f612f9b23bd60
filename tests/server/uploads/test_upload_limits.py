"""How much is uploaded at once and in all, and what a retry of an upload is."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import ExitStack

import pytest

from mint.server.uploads import checkpoint
from mint.store.keys import Role
from tests.server.inprocess import Serve, play
from tests.server.key_rows import add
from tests.server.test_checkpoints import folders, listed

from .made import WEIGHTS_NAME, adapter, factors, tar, weights
from .test_uploads import left, sent, uploaded


def test_no_more_is_received_than_a_checkpoint_can_have(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_OTHER_BYTES", 0)
    monkeypatch.setattr(checkpoint, "MAX_HEADER_BYTES", 1 << 10)

    async def scene() -> None:
        async with serve() as world:
            answer = await sent(world.alice, gzip.compress(tar(adapter())) + bytes(4 << 20))
            assert (answer.status_code, answer.json()["field"]) == (413, "file")
            assert left(world) == []

    play(scene)


def test_a_few_at_once(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            owner = (await world.alice.send("GET", "auth/apikey/me")).json()["details"]["org_details"]["name"]
            with ExitStack() as others:
                for _ in range(checkpoint.MAX_AT_ONCE):
                    others.enter_context(world.services.uploads.one(owner))
                refused = await sent(world.alice, tar(adapter()))
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert (await sent(world.bob, tar(adapter()))).status_code == 200
            assert (await sent(world.alice, tar(adapter()))).status_code == 200
            assert not world.services.uploads
            together = await asyncio.gather(*(sent(world.alice, tar(adapter())) for _ in range(8)))
            assert sorted(each.status_code for each in together) == [200] * 4 + [429] * 4

    play(scene)


def test_a_retry_is_answered_what_the_first_try_was(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            key = {"X-Idempotency-Key": "k"}
            archive = tar(adapter())
            first = (await sent(world.alice, archive, key)).json()
            assert (await sent(world.alice, archive, key)).json() == first
            assert (await sent(world.bob, archive, key)).json()["path"] != first["path"]
            other = await sent(world.alice, tar(adapter(**{WEIGHTS_NAME: weights(factors(seed=1))})), key)
            assert (other.status_code, other.json()["field"]) == (400, "X-Idempotency-Key")
            assert len(await listed(world.alice)) == 1
            assert len(folders(world)) == 2
            assert "directory" not in first

    play(scene)


def test_stored_bytes_count(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            size = (await uploaded(world.bob, adapter()))["size_bytes"]
            small, _ = await add(world, "sk-small-secret", owner="small", role=Role.USER, max_stored_bytes=2 * size - 1)
            assert (await sent(small, tar(adapter()))).status_code == 200
            over = await sent(small, tar(adapter()))
            assert (over.status_code, over.json()["field"]) == (403, "max_stored_bytes")
            assert len(folders(world)) == 2
            full, _ = await add(world, "sk-full-secret", owner="full", role=Role.USER, max_stored_bytes=0)
            unread = await sent(full, b"not looked at")
            assert (unread.status_code, unread.json()["field"]) == (403, "max_stored_bytes")

    play(scene)
