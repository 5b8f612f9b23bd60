"""What only PostgreSQL needs: a lock that a lost connection loses, and a word of what it makes durable."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import OperationalError

from mint.config import Durability
from mint.errors import MintError
from mint.store import repository
from mint.store.database import Database
from mint.store.dialects import SERVER_LOCK, DatabaseTakenError, PostgreSQL
from mint.store.schema import Session

from .rows import session

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
ME = "SELECT pg_backend_pid()"


def run(database: Database, work: Callable[[Connection], Any]) -> Any:
    return asyncio.run(database.transaction(work))


def ask(database: Database, query: str) -> Any:
    return run(database, lambda c: c.execute(text(query)).scalar_one())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint.store.dialects.LOCK_MILLISECONDS", 100)


@pytest.fixture
def server(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, serving=True)
    yield opened
    opened.close()


@pytest.fixture
def beside(database_url: str) -> Iterator[Database]:
    """A connection as `mint keys` has one."""
    opened = Database(database_url)
    yield opened
    opened.close()


def cut(server: Database, beside: Database) -> None:
    """End the server's connection, and wait until the database knows."""
    pid = ask(server, ME)
    ask(beside, f"SELECT pg_terminate_backend({pid}, 5000)")


def test_one_server_works_on_a_database(server: Database, database_url: str) -> None:
    with pytest.raises(DatabaseTakenError, match="another `mint serve` works on this database"):
        Database(database_url, serving=True)
    Database(database_url).close()
    server.close()
    Database(database_url, serving=True).close()


def test_a_server_that_is_just_ending_is_waited_for(
    server: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint.store.dialects.LOCK_MILLISECONDS", 20_000)
    ending = threading.Timer(0.3, server.close)
    ending.start()
    Database(database_url, serving=True).close()
    ending.join()


def test_a_connection_that_was_cut_comes_back_with_its_lock(
    server: Database, beside: Database, database_url: str
) -> None:
    returns: list[bool] = []
    server.on_return = lambda: returns.append(True)
    cut(server, beside)
    with pytest.raises(OperationalError) as lost:
        run(server, lambda c: repository.insert(c, session()))
    assert lost.value.connection_invalidated
    assert not returns
    run(server, lambda c: repository.insert(c, session()))
    assert returns == [True]
    assert run(beside, lambda c: repository.find(c, Session, session_id="s")) is not None
    with pytest.raises(DatabaseTakenError):
        Database(database_url, serving=True)


@pytest.mark.parametrize("still_there", [True, False])
def test_a_server_that_was_overtaken_writes_no_more(
    server: Database, beside: Database, database_url: str, still_there: bool
) -> None:
    taken: list[bool] = []
    server.on_taken = lambda: taken.append(True)
    cut(server, beside)
    other = Database(database_url, serving=True)
    if not still_there:
        other.close()
    with pytest.raises(OperationalError, match="terminating connection"):
        ask(server, ME)
    for _ in range(2):
        with pytest.raises(DatabaseTakenError, match="has taken this database over"):
            run(server, lambda c: repository.insert(c, session()))
    assert taken == [True, True]
    assert run(beside, lambda c: repository.find(c, Session, session_id="s")) is None
    if still_there:
        other.close()


def test_a_lock_that_is_not_free_yet_is_waited_for(server: Database, beside: Database) -> None:
    """The database may learn later than the server that their connection is gone."""
    cut(server, beside)
    run(beside, lambda c: c.execute(text(f"SELECT pg_advisory_lock({SERVER_LOCK})")))
    for message in ("terminating connection", "lock is still held"):
        with pytest.raises(OperationalError, match=message):
            ask(server, ME)
    run(beside, lambda c: c.execute(text("SELECT pg_advisory_unlock_all()")))
    assert ask(server, ME) > 0


def test_power_is_promised_only_where_it_is_kept(database_url: str) -> None:
    """The tests' own server does not flush to the disk: that is faster."""
    with pytest.raises(MintError, match="durability: the database runs with fsync") as refused:
        Database(database_url, durability=Durability.POWER)
    assert refused.value.field == "durability"


@pytest.mark.parametrize(("role", "kept"), [("off", "on"), ("remote_apply", "remote_apply")])
def test_power_waits_for_the_disk_whatever_the_default_is(
    beside: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, role: str, kept: str
) -> None:
    run(beside, lambda c: c.execute(text(f"ALTER ROLE mint SET synchronous_commit = {role}")))
    monkeypatch.setattr("mint.store.dialects.FLUSHES", ())
    asked = Database(database_url, durability=Durability.POWER)
    default = Database(database_url)
    assert [ask(each, "SHOW synchronous_commit") for each in (asked, default)] == [kept, role]
    run(beside, lambda c: c.execute(text("ALTER ROLE mint RESET synchronous_commit")))
    for each in (asked, default):
        each.close()


def test_whoever_has_gone_silent_is_noticed(database_url: str) -> None:
    """What the network takes without a word would otherwise hold up the only thread there is, for hours."""
    engine = PostgreSQL(make_url(f"{database_url}&connect_timeout=9"), Durability.PROCESS).engine
    with engine.connect() as connection:
        given = connection.connection.dbapi_connection.info.get_parameters()
    assert {name: given[name] for name in ("connect_timeout", "keepalives_idle", "tcp_user_timeout")} == {
        "connect_timeout": "9",
        "keepalives_idle": "5",
        "tcp_user_timeout": "10000",
    }
