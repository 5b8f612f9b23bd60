"""Keys at rest: whose each is, how long it holds and within which limits.

A key is kept as the SHA-256 of its secret. Secrets made here have 192 random bits, which nobody finds by trying; a slow
hash with a salt is for passwords, which people think up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from time import time

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    RowMapping,
    String,
    Table,
    func,
    or_,
    select,
    update,
)

from mint.store.schema import metadata


class Role(StrEnum):
    """What a key may do: a user has its owner's objects; an admin also reads audit log and usage of all owners."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Key:
    """One key. Several may share an owner, which is a tenant's name; times are seconds since the epoch.

    The limits on runs, operations and bytes are on all that the owner has, and hold for what is asked for with this
    key; None is no limit. `version` grows with every change of any key.
    """

    digest: str
    owner: str
    role: Role
    created_at: float
    note: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None
    max_live_runs: int | None = None
    max_queued_operations: int | None = None
    max_stored_bytes: int | None = None
    requests_per_second: float | None = None
    key_id: int | None = None
    version: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.note or f"key {self.key_id}"

    @property
    def ended(self) -> str | None:
        """Why the key does not hold any more; None while it does."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= time():
            return "has expired"
        return None


keys = Table(
    "keys",
    metadata,
    Column("key_id", Integer, primary_key=True),
    Column("digest", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("role", String, nullable=False),
    Column("note", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("max_live_runs", BigInteger),
    Column("max_queued_operations", BigInteger),
    Column("max_stored_bytes", BigInteger),
    Column("requests_per_second", Float),
    Column("version", Integer, nullable=False, unique=True),
)


def create(connection: Connection, key: Key) -> Key:
    """Add a key; returns it with its id."""
    row = {name: value for name, value in asdict(key).items() if name != "key_id"} | {"version": _next(connection)}
    created = connection.execute(keys.insert().values(row).returning(keys.c.key_id)).scalar_one()
    return replace(key, key_id=created, version=row["version"])


def revoke(connection: Connection, key_id: int) -> Key | None:
    """End a key for good; returns it, or None if there is none of that id that had not been revoked."""
    query = update(keys).where(keys.c.key_id == key_id, keys.c.revoked_at.is_(None))
    row = connection.execute(query.values(revoked_at=time(), version=_next(connection)).returning(keys)).one_or_none()
    return _key(row._mapping) if row is not None else None


def changed_since(connection: Connection, version: int) -> list[Key]:
    """Keys that were made or revoked after this version, oldest change first."""
    rows = connection.execute(select(keys).where(keys.c.version > version).order_by(keys.c.version))
    return [_key(row._mapping) for row in rows]


def all_keys(connection: Connection) -> list[Key]:
    """Every key that was ever made, in the order of their ids."""
    return [_key(row._mapping) for row in connection.execute(select(keys).order_by(keys.c.key_id))]


def any_holds(connection: Connection) -> bool:
    """Whether there is a key that is good now."""
    alive = or_(keys.c.expires_at.is_(None), keys.c.expires_at > time())
    return (
        connection.execute(select(keys.c.key_id).where(keys.c.revoked_at.is_(None), alive).limit(1)).first() is not None
    )


def _next(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(keys.c.version), 0))).scalar_one()) + 1


def _key(row: RowMapping) -> Key:
    return Key(**{**row, "role": Role(row["role"])})
