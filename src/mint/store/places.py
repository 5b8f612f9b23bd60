"""Where operations stand that came without a number.

Clients count the operations of a run, and MinT's own requests need not be counted: published clients send some without
a number. Such an operation stands behind all that had come before it. It takes the next place, and the numbers that the
client has yet to use move up by one: a *place* is what the journal and the dispatcher know as `seq_id`.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select

from mint.store.schema import operations, unnumbered


def place_of(connection: Connection, stream: str, number: int) -> int:
    """The place of a client's number."""
    query = select(func.count()).where(unnumbered.c.stream == stream, unnumbered.c.after < number)
    return number + int(connection.execute(query).scalar_one())


def next_place(connection: Connection, stream: str) -> int:
    """The place behind everything that has come."""
    query = select(func.max(operations.c.seq_id)).where(operations.c.stream == stream)
    return int(connection.execute(query).scalar_one() or 0) + 1


def take(connection: Connection, stream: str, place: int, request_id: str, retry_key: str | None) -> None:
    """Note that an operation without a number stands at the next place."""
    query = select(func.count()).where(unnumbered.c.stream == stream)
    after = place - 1 - int(connection.execute(query).scalar_one())
    row = {"request_id": request_id, "stream": stream, "after": after, "retry_key": retry_key}
    connection.execute(insert(unnumbered), row)


def known(connection: Connection, stream: str, retry_key: str | None) -> str | None:
    """The operation that an earlier try of the same request has made."""
    query = select(unnumbered.c.request_id).where(unnumbered.c.stream == stream, unnumbered.c.retry_key == retry_key)
    return connection.scalar(query) if retry_key is not None else None


def streams(connection: Connection) -> set[str]:
    """Those that have such operations; in all others, a place is a number."""
    return set(connection.scalars(select(unnumbered.c.stream).distinct()))
