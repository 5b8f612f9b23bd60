"""Transactions, migrations, and what survives."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from mint.config import Durability
from mint.errors import MintError
from mint.store import journal, repository
from mint.store.database import Database
from mint.store.schema import Session, metadata

from .conftest import Transact
from .rows import insert_run, operation, run, session


def test_the_migrations_make_the_schema(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    assert asyncio.run(database.transaction(differences)) == []


def test_opening_again_changes_nothing(database_url: str) -> None:
    for name in ("first", "second"):
        opened = Database(database_url)
        asyncio.run(opened.transaction(lambda c, name=name: repository.insert(c, session(session_id=name))))
        opened.close()
    opened = Database(database_url)
    for name in ("first", "second"):
        assert asyncio.run(opened.transaction(lambda c, name=name: repository.find(c, Session, session_id=name)))
    opened.close()


def test_a_migration_is_all_or_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = "alembic.runtime.migration.HeadMaintainer.update_to_step"

    def killed(*_: object) -> None:
        raise RuntimeError("killed before the version was written")

    with monkeypatch.context() as patch:
        patch.setattr(stamp, killed)
        with pytest.raises(RuntimeError):
            Database(empty_url)
    tables = inspect(create_engine(empty_url, poolclass=NullPool)).get_table_names()
    assert "operations" not in tables
    Database(empty_url).close()


def test_a_transaction_that_raises_leaves_nothing(transact: Transact[Any]) -> None:
    def half(connection: Connection) -> None:
        insert_run(connection)
        journal.append(connection, operation())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        transact(half)
    assert transact(lambda c: repository.find(c, Session, session_id="s")) is None
    assert transact(lambda c: journal.find(c, "r1")) is None
    transact(insert_run)


def test_foreign_keys_hold(transact: Transact[Any]) -> None:
    with pytest.raises(IntegrityError):
        transact(lambda c: repository.insert(c, run(session_id="unknown")))


def test_transactions_of_many_tasks_do_not_mix(database: Database) -> None:
    seen: list[tuple[str, int]] = []

    async def all_at_once() -> None:
        def work(number: int) -> Any:
            def inside(connection: Connection) -> None:
                seen.append(("begin", number))
                repository.insert(connection, session(session_id=str(number)))
                seen.append(("end", number))

            return inside

        await asyncio.gather(*(database.transaction(work(number)) for number in range(50)))

    asyncio.run(all_at_once())
    assert seen == [(step, number) for number in range(50) for step in ("begin", "end")]


def test_what_is_committed_survives_a_killed_process(database_url: str) -> None:
    program = f"""
import asyncio, os, signal
from mint.store import repository
from mint.store.database import Database
from tests.store.rows import session
database = Database({database_url!r})
asyncio.run(database.transaction(lambda c: repository.insert(c, session())))
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=60).returncode == -9
    opened = Database(database_url)
    assert asyncio.run(opened.transaction(lambda c: repository.find(c, Session, session_id="s"))) is not None
    opened.close()


@pytest.mark.parametrize(("durability", "synchronous"), [(Durability.PROCESS, 1), (Durability.POWER, 2)])
def test_how_sqlite_writes(tmp_path: Path, durability: Durability, synchronous: int) -> None:
    """1 is NORMAL, which leaves it to the system when the disk is written; 2 is FULL."""
    opened = Database.at(tmp_path / "mint.db", durability=durability)

    def settings(connection: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]

    assert asyncio.run(opened.transaction(settings)) == ["wal", synchronous, 1]
    opened.close()


@pytest.mark.parametrize("url", ["nothing", "mysql://u:secret@h/d", "postgresql+asyncpg://u:secret@h/d", ""])
def test_what_is_no_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(MintError, match="database_url: ") as refused:
        Database(url)
    assert "secret" not in str(refused.value)


def test_a_transaction_that_has_read_waits_for_another_process_that_writes(tmp_path: Path) -> None:
    """SQLite tells it at once that the database is busy."""
    tries: list[bool] = []
    opened = Database.at(tmp_path / "mint.db")
    with (
        closing(opened),
        closing(sqlite3.connect(tmp_path / "mint.db", isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")

        def work(connection: Connection) -> None:
            tries.append(repository.find(connection, Session, session_id="s") is None)
            if len(tries) == 3:
                other.execute("ROLLBACK")
            repository.insert(connection, session())

        asyncio.run(opened.transaction(work))
    assert tries == [True, True, True]
