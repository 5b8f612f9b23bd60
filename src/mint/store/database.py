"""The database: one writer thread, short transactions, migrations at start.

All access goes through `transaction`, which runs a function of a connection on the database's own thread. One
thread is all that SQLite lets write, and it keeps the event loop free. A transaction that raises leaves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT
from sqlite3 import Connection as SQLiteConnection
from time import monotonic, sleep
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

T = TypeVar("T")

BUSY_SECONDS, BUSY_PAUSE = 10.0, 0.005
"""How long a transaction waits for another process that writes, and between two looks."""

PRAGMAS = (
    "journal_mode=WAL",
    # With WAL, NORMAL survives the death of the process at any moment, but a loss of power not always.
    "synchronous=NORMAL",
    "foreign_keys=ON",
    f"busy_timeout={round(1000 * BUSY_SECONDS)}",
)


class Database:
    """An open database.

    Args:
        url: SQLAlchemy URL; SQLite and PostgreSQL are meant.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _prepare)
            event.listen(self._engine, "begin", _begin)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        _migrate(self._engine)
        self._connection = self._engine.connect()

    @classmethod
    def at(cls, path: Path) -> Database:
        """The embedded database in a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}?check_same_thread=false")

    async def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own and return what it returns. It is run again where that is needed."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        deadline = monotonic() + BUSY_SECONDS
        while True:
            try:
                with self._connection.begin():
                    return work(self._connection)
            except OperationalError as error:
                code = getattr(error.orig, "sqlite_errorcode", 0)
                # another process, `mint keys`, wrote between what this transaction read and what it was to write
                if code == SQLITE_BUSY_SNAPSHOT:
                    continue
                # it is writing now; who has read is told so at once, since two such could wait for each other
                if code != SQLITE_BUSY or monotonic() > deadline:
                    raise
                sleep(BUSY_PAUSE)

    async def check_writable(self) -> None:
        """Write without changing anything.

        Raises:
            SQLAlchemyError: the database does not take it.
        """
        await self.transaction(lambda c: c.execute(text("UPDATE alembic_version SET version_num = version_num")))

    async def size_bytes(self) -> int:
        """Of the database on its disk."""
        return await self.transaction(_size)

    def close(self) -> None:
        """Finish what is queued, then close."""
        self._thread.shutdown()
        self._connection.close()
        self._engine.dispose()


def _prepare(connection: SQLiteConnection, _record: Any) -> None:
    # left to itself, the driver begins a transaction only before it writes rows, and so not before it makes tables
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # past SQLAlchemy's own way to execute, which takes longer than many a transaction's work
    connection.connection.cursor().execute("BEGIN")


def _size(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        query = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    else:
        query = "SELECT pg_database_size(current_database())"
    return int(connection.execute(text(query)).scalar_one())


def _migrate(engine: Engine) -> None:
    """Bring the schema to this version's."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
