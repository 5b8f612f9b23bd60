"""The database: one writer thread, short transactions, migrations at start.

All access goes through `transaction`, which runs a function of a connection on the database's own thread. One
thread is all that SQLite lets write, and it keeps the event loop free. A transaction that raises leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from mint.config import Durability
from mint.store.dialects import DatabaseTakenError, dialect
from mint.store.schema import deployment

T = TypeVar("T")

logger = logging.getLogger(__name__)

BUSY_SECONDS, BUSY_PAUSE = 10.0, 0.005
"""How long a transaction waits for another process that writes, and between two looks."""


class Database:
    """An open database.

    Args:
        url: SQLAlchemy's, of SQLite or PostgreSQL.
        durability: what a committed transaction survives.
        serving: keep other servers off it; see `mint.store.dialects`.

    Attributes:
        deployment_id: of the folders that this database knows; None where it is not `serving`.
        on_return: called, on the database's thread, when a connection that was lost is there again. A transaction that
            was being committed then may stand although it has raised.
        on_taken: called likewise when another server has taken over meanwhile; nothing is written from then on.

    Raises:
        DatabaseTakenError: another server has it.
        SQLAlchemyError: it cannot be opened.
        MintError: the URL is none of a database that is supported, or the database does not keep what is asked of it.
    """

    def __init__(self, url: str, *, durability: Durability = Durability.PROCESS, serving: bool = False) -> None:
        self._dialect = dialect(url, durability)
        self._engine = self._dialect.engine
        self._lost = False
        self.deployment_id: str | None = None
        self.on_return: Callable[[], object] = lambda: None
        self.on_taken: Callable[[], object] = lambda: None
        self._connection = self._engine.connect()
        try:
            if serving:
                self._dialect.lock(self._connection)
            self._migrate()
            if serving:
                self._claim()
        except BaseException:
            self._connection.close()
            self._engine.dispose()
            raise
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    @classmethod
    def at(cls, path: Path, *, durability: Durability = Durability.PROCESS, serving: bool = False) -> Database:
        """The embedded database in a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}", durability=durability, serving=serving)

    async def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own and return what it returns. It is run again where that is needed.

        Raises:
            SQLAlchemyError: one of `UNAVAILABLE` where the same may succeed later. If it says `connection_invalidated`,
                the transaction may have been committed all the same.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        deadline = monotonic() + BUSY_SECONDS
        while True:
            try:
                with self._connection.begin():
                    result = work(self._connection)
            except DatabaseTakenError:
                self.on_taken()
                raise
            except DBAPIError as error:
                self._lost |= error.connection_invalidated
                if self._dialect.overtaken(error):
                    continue
                if not self._dialect.busy(error) or monotonic() > deadline:
                    raise
                sleep(BUSY_PAUSE)
            else:
                self._note_return()
                return result

    def _note_return(self) -> None:
        if self._lost:
            self._lost = False
            logger.warning("the database is there again")
            self.on_return()

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

    def _migrate(self) -> None:
        """Bring the schema to this version's."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        self._dialect.lock_schema(self._connection, wanted=True)
        with self._connection.begin():
            config.attributes["connection"] = self._connection
            command.upgrade(config, "head")
        self._dialect.lock_schema(self._connection, wanted=False)

    def _claim(self) -> None:
        """Write down that this server is the one that works here now."""
        server_id = token_hex(16)
        with self._connection.begin():
            self.deployment_id = self._connection.scalar(select(deployment.c.deployment_id)) or token_hex(16)
            self._connection.execute(deployment.delete())
            row = {"deployment_id": self.deployment_id, "server_id": server_id}
            self._connection.execute(deployment.insert(), row)
        self._dialect.locked_by(server_id)


def _size(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        query = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    else:
        query = "SELECT pg_database_size(current_database())"
    return int(connection.execute(text(query)).scalar_one())
