"""The audit log: who did what that others may want to know of."""

from __future__ import annotations

from dataclasses import dataclass
from time import time
from typing import Any

from sqlalchemy import JSON, Column, Connection, Float, Index, Integer, String, Table, select

from mint.store.schema import metadata


@dataclass(frozen=True)
class Entry:
    """One event, `<resource>_<action>`; `owner` is who did it, `details` says to what. Seconds since the epoch."""

    timestamp: float
    event: str
    owner: str
    details: dict[str, Any]


audit_log = Table(
    "audit_log",
    metadata,
    Column("entry_id", Integer, primary_key=True),
    Column("timestamp", Float, nullable=False),
    Column("event", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("details", JSON, nullable=False),
    Index("audit_log_by_time", "timestamp"),
)
_INSERT = audit_log.insert()


def record(connection: Connection, event: str, owner: str, **details: Any) -> None:
    """Write an event down, in the transaction that makes it true."""
    row = {"timestamp": time(), "event": event, "owner": owner, "details": details}
    connection.execute(_INSERT, row)


def entries(
    connection: Connection, since: float, before: float, *, resource: str | None = None, owner: str | None = None
) -> list[Entry]:
    """Events of a span of time, in their order; of one resource or owner only, where one is given."""
    log = audit_log.c
    query = select(log.timestamp, log.event, log.owner, log.details)
    query = query.where(log.timestamp >= since, log.timestamp < before).order_by(log.timestamp, log.entry_id)
    if resource is not None:
        query = query.where(log.event.startswith(f"{resource}_", autoescape=True))
    if owner is not None:
        query = query.where(log.owner == owner)
    return [Entry(*row) for row in connection.execute(query)]
