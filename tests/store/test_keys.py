"""Keys at rest, and what is written beside a running server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex
from time import time
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from mint.store import audit, keys, usage
from mint.store.database import Database
from mint.store.dialects import UNAVAILABLE
from mint.store.keys import Key, Role
from mint.store.usage import HOUR, Bucket, Use

from .conftest import Transact


def key(digest: str = "d1", **fields: Any) -> Key:
    return Key(**{"digest": digest, "owner": "lab", "role": Role.USER, "created_at": 1.0, **fields})


def test_a_key_comes_back_as_it_was(transact: Transact[Any]) -> None:
    whole = key(
        role=Role.ADMIN,
        note="for CI",
        expires_at=2.0,
        max_live_runs=1,
        max_queued_operations=2,
        max_stored_bytes=3 << 40,
        requests_per_second=0.5,
    )
    created = transact(lambda c: keys.create(c, whole))
    assert created.key_id == 1
    assert transact(keys.all_keys) == [created]
    assert created.ended == "has expired"
    with pytest.raises(IntegrityError):
        transact(lambda c: keys.create(c, key()))


def test_changes_are_told_once(transact: Transact[Any]) -> None:
    first, second = (transact(lambda c, d=d: keys.create(c, key(d))) for d in ("d1", "d2"))
    assert transact(lambda c: keys.changed_since(c, 0)) == [first, second]
    assert transact(lambda c: keys.changed_since(c, second.version)) == []
    revoked = transact(lambda c: keys.revoke(c, first.key_id))
    assert transact(lambda c: keys.changed_since(c, second.version)) == [revoked]
    assert revoked.ended == "was revoked"
    assert transact(lambda c: keys.revoke(c, first.key_id)) is None
    assert transact(lambda c: keys.revoke(c, 7)) is None


def test_whether_any_key_holds(transact: Transact[Any]) -> None:
    assert not transact(keys.any_holds)
    transact(lambda c: keys.create(c, key(expires_at=time() - 1)))
    assert not transact(keys.any_holds)
    created = transact(lambda c: keys.create(c, key("d2", expires_at=time() + 60)))
    assert transact(keys.any_holds)
    transact(lambda c: keys.revoke(c, created.key_id))
    assert not transact(keys.any_holds)


def test_a_transaction_that_another_process_overtakes_runs_again(database_url: str, database: Database) -> None:
    other = Database(database_url)
    tries = []

    def count(connection: Connection) -> int:
        return int(connection.execute(text("SELECT count(*) FROM audit_log")).scalar_one())

    def read_then_write(connection: Connection) -> int:
        seen = count(connection)
        if not tries:
            asyncio.run(other.transaction(lambda c: (count(c), audit.record(c, "key_create", "other"))))
        tries.append(seen)
        audit.record(connection, "key_create", "me")
        return seen

    assert asyncio.run(database.transaction(read_then_write)) == 1
    assert tries == [0, 1]
    assert len(asyncio.run(database.transaction(lambda c: audit.entries(c, 0, time() + 1)))) == 2
    other.close()


def test_keys_that_are_made_at_once_are_all_told(database_url: str) -> None:
    """Each has a version of its own, which is one more than the highest."""

    def make(opened: Database) -> None:
        for number in range(5):
            asyncio.run(opened.transaction(lambda c, number=number: keys.create(c, key(f"{id(opened)}-{number}"))))

    opened = [Database(database_url) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(make, opened))
    made = asyncio.run(opened[0].transaction(keys.all_keys))
    assert sorted(each.version for each in made) == list(range(1, 11))
    for each in opened:
        each.close()


def test_the_audit_log_is_asked_by_time_resource_and_owner(transact: Transact[Any]) -> None:
    transact(lambda c: audit.record(c, "checkpoint_save", "a", path="p"))
    transact(lambda c: audit.record(c, "checkpoint_delete", "b"))
    transact(lambda c: audit.record(c, "key_create", "a"))

    def events(since: float = 0, before: float = time() + 60, **which: str) -> list[str]:
        return [entry.event for entry in transact(lambda c: audit.entries(c, since, before, **which))]

    assert events() == ["checkpoint_save", "checkpoint_delete", "key_create"]
    assert events(resource="checkpoint") == ["checkpoint_save", "checkpoint_delete"]
    assert events(resource="check") == []
    assert events(owner="a") == ["checkpoint_save", "key_create"]
    assert events(before=0) == events(since=time() + 1) == []
    assert transact(lambda c: audit.entries(c, 0, time() + 1))[0].details == {"path": "p"}


def test_usage_adds_up_by_the_hour(transact: Transact[Any]) -> None:
    first = Bucket(0, "a", "s", "s:train:0", "base", Use.TRAINING)
    later = Bucket(HOUR, "a", "s", "s:train:0", "base", Use.TRAINING)
    theirs = Bucket(HOUR, "b", "t", "t:train:0", "base", Use.TRAINING)
    for bucket, quantity in ((first, 3), (first, 4), (later, 5), (theirs, 1 << 40)):
        transact(lambda c, b=bucket, q=quantity: usage.add(c, b, q))
    assert transact(lambda c: usage.between(c, 0, 2 * HOUR)) == [(first, 7), (theirs, 1 << 40), (later, 5)]
    assert transact(lambda c: usage.between(c, HOUR, 2 * HOUR, "a")) == [(later, 5)]
    assert transact(lambda c: usage.between(c, 0, HOUR, "b")) == []


READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}


def test_a_database_says_whether_it_can_be_written(database: Database, transact: Transact[Any]) -> None:
    asyncio.run(database.check_writable())
    before = asyncio.run(database.size_bytes())
    transact(lambda c: audit.record(c, "key_create", "a", note=token_hex(100_000)))  # what is random is not compressed
    assert asyncio.run(database.size_bytes()) > before + 90_000
    transact(lambda c: c.execute(text(READ_ONLY[c.dialect.name])))
    with pytest.raises(UNAVAILABLE):
        asyncio.run(database.check_writable())
