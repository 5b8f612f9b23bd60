"""What SQLite and PostgreSQL need said differently: how they are opened, made durable, and kept to one server."""

from __future__ import annotations

from sqlite3 import SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT
from sqlite3 import Connection as SQLiteConnection
from typing import Any, Protocol

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError

from mint.config import Durability
from mint.errors import MintError

UNAVAILABLE = (OperationalError, InterfaceError, InternalError)
"""The database does not take it now, and may later: it is locked, full, gone, read-only for a while."""


class DatabaseTakenError(OperationalError):
    """Another server works on the database."""

    def __init__(self, message: str) -> None:
        super().__init__("pg_try_advisory_lock", {}, Exception(message))


class Dialect(Protocol):
    """One kind of database."""

    engine: Engine

    def lock(self, connection: Connection) -> None:
        """Keep other servers off the database for as long as it is open."""
        ...

    def locked_by(self, server_id: str) -> None:
        """The server that has the lock is written down under this id."""
        ...

    def lock_schema(self, connection: Connection, *, wanted: bool) -> None:
        """Keep others from changing the schema, until it is not wanted any more."""
        ...

    def overtaken(self, error: DBAPIError) -> bool:
        """Whether a transaction failed only because another process wrote: then it can be run again."""
        ...

    def busy(self, error: DBAPIError) -> bool:
        """The same, of one that is writing still: then it can be run again in a moment."""
        ...


def dialect(url: str, durability: Durability) -> Dialect:
    """The kind of database that a URL names.

    Raises:
        MintError: it is none that is supported, or no URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:  # whose message quotes the URL, and with it a password
        raise MintError("is no URL of a database", field="database_url") from None
    if parsed.drivername.partition("+")[0] == "sqlite":
        return SQLite(parsed, durability)
    if parsed.drivername in {"postgresql", "postgresql+psycopg"}:
        return PostgreSQL(parsed.set(drivername="postgresql+psycopg"), durability)
    raise MintError(f"names {parsed.drivername}; supported are postgresql+psycopg and sqlite", field="database_url")


# --- SQLite -------------------------------------------------------------------------------------------------

SYNCHRONOUS = {
    # with WAL, NORMAL survives the death of the process at any moment, but a loss of power not always
    Durability.PROCESS: "NORMAL",
    Durability.POWER: "FULL",
}


class SQLite:
    """A file. What keeps other servers off it is the lock on the data folder that it lies in."""

    def __init__(self, url: URL, durability: Durability) -> None:
        self._pragmas = (
            "journal_mode=WAL",
            f"synchronous={SYNCHRONOUS[durability]}",
            "foreign_keys=ON",
            "busy_timeout=10000",
        )
        self.engine = create_engine(url.update_query_dict({"check_same_thread": "false"}))
        event.listen(self.engine, "connect", self._prepare)
        event.listen(self.engine, "begin", _begin)

    def _prepare(self, connection: SQLiteConnection, _record: Any) -> None:
        # left to itself, the driver begins a transaction only before it writes rows, and so not before it makes tables
        connection.isolation_level = None
        for pragma in self._pragmas:
            connection.execute(f"PRAGMA {pragma}")

    def lock(self, connection: Connection) -> None:
        """See `Dialect`."""

    def locked_by(self, server_id: str) -> None:
        """See `Dialect`."""

    def lock_schema(self, connection: Connection, *, wanted: bool) -> None:
        """See `Dialect`; a transaction is all that it takes."""

    def overtaken(self, error: DBAPIError) -> bool:
        """See `Dialect`: another process wrote between what was read and what was to be written."""
        return getattr(error.orig, "sqlite_errorcode", None) == SQLITE_BUSY_SNAPSHOT

    def busy(self, error: DBAPIError) -> bool:
        """See `Dialect`: who has read is told so at once, since two such could wait for each other."""
        return getattr(error.orig, "sqlite_errorcode", None) == SQLITE_BUSY


def _begin(connection: Connection) -> None:
    # past SQLAlchemy's own way to execute, which takes longer than many a transaction's work
    connection.connection.cursor().execute("BEGIN")


# --- PostgreSQL ---------------------------------------------------------------------------------------------

SERVER_LOCK, SCHEMA_LOCK = 0x6D696E7401, 0x6D696E7402
"""Advisory locks, which belong to one database each; "mint" in hexadecimal, so that they are nobody else's."""

CONNECTION = {
    # seconds, milliseconds for the last: a peer that has gone without a word is noticed within some ten seconds
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
LOCK_MILLISECONDS = 5000
"""The connection of a server that has just ended may be there for a moment longer."""
LOCK_NOT_AVAILABLE = "55P03"
FLUSHES = ("fsync", "full_page_writes")
"""Settings without which a loss of power may damage everything there is."""
ASKED = ["server_encoding", "synchronous_commit", *FLUSHES]
RERUN = {"40001", "40P01"}
"""SQLSTATEs: the transaction does not go together with another one; two wait for each other."""


class PostgreSQL:
    """A database on a server. Transactions behave as if there were no others at the same time.

    The lock belongs to the connection that writes, so that nothing is written without it. When the connection was lost
    and comes again, the row in `deployment` says whether another server has been here meanwhile: then this one has been
    overtaken, and must not write any more, whatever it still has in its hands.
    """

    def __init__(self, url: URL, durability: Durability) -> None:
        self._durability = durability
        self._server_id: str | None = None
        self.engine = create_engine(
            url,
            isolation_level="SERIALIZABLE",
            poolclass=NullPool,
            connect_args={name: value for name, value in CONNECTION.items() if name not in url.query},
        )
        event.listen(self.engine, "connect", self._prepare)

    def _prepare(self, connection: Any, _record: Any) -> None:
        settings = dict(connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [ASKED]))
        if settings["server_encoding"] != "UTF8":
            raise MintError(f"its encoding is {settings['server_encoding']}; UTF8 is needed", field="database_url")
        if self._durability == Durability.POWER:
            if off := [name for name in FLUSHES if settings[name] == "off"]:
                raise MintError(f"the database runs with {' and '.join(off)} off", field="durability")
            if settings["synchronous_commit"] == "off":
                connection.execute("SET synchronous_commit = on")
        connection.execute("SET lock_timeout = '10s'")
        connection.commit()
        if self._server_id is not None:
            self._lock_again(connection, self._server_id)
            connection.commit()

    def lock(self, connection: Connection) -> None:
        """See `Dialect`.

        Raises:
            DatabaseTakenError: another server has it.
        """
        try:
            with connection.begin():
                connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))
                connection.execute(text(f"SELECT pg_advisory_lock({SERVER_LOCK})"))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise DatabaseTakenError("another `mint serve` works on this database; give this one its own") from error

    def locked_by(self, server_id: str) -> None:
        """See `Dialect`."""
        self._server_id = server_id

    @staticmethod
    def _lock_again(connection: Any, server_id: str) -> None:
        """Take the lock on a new connection.

        Raises:
            DatabaseTakenError: another server has been here meanwhile.
            OperationalError: the lock is still held; most likely the database does not know yet that we were cut off.
        """
        locked = connection.execute(f"SELECT pg_try_advisory_lock({SERVER_LOCK})").fetchone()[0]
        connection.commit()  # what is read next is of a time when the lock is ours
        if connection.execute("SELECT server_id FROM deployment").fetchone() != (server_id,):
            raise DatabaseTakenError("another `mint serve` has taken this database over")
        if not locked:
            raise OperationalError("pg_try_advisory_lock", {}, Exception("this server's lock is still held"))

    def lock_schema(self, connection: Connection, *, wanted: bool) -> None:
        """See `Dialect`. In a transaction of its own: the next one sees what whoever had the lock has done."""
        with connection.begin():
            connection.execute(text(f"SELECT pg_advisory_{'lock' if wanted else 'unlock'}({SCHEMA_LOCK})"))

    def overtaken(self, error: DBAPIError) -> bool:
        """See `Dialect`."""
        return getattr(error.orig, "sqlstate", None) in RERUN

    def busy(self, error: DBAPIError) -> bool:
        """See `Dialect`: who writes is waited for."""
        del error
        return False
