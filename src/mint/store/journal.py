"""The operation journal: a request is here before it is acknowledged, its result before it is announced."""

from __future__ import annotations

from dataclasses import asdict
from time import time

from sqlalchemy import ColumnElement, Connection, select, update

from mint.store.schema import Operation, Status, operations


def known(connection: Connection, stream: str, seq_id: int) -> Operation | None:
    """The operation that a stream already has under this number, without its payload."""
    return _without_payload(connection, operations.c.stream == stream, operations.c.seq_id == seq_id)


def append(connection: Connection, operation: Operation) -> Operation:
    """Journal a request, or return the one its stream has under this number already: this is a retry."""
    if (first := known(connection, operation.stream, operation.seq_id)) is not None:
        return first
    connection.execute(operations.insert(), asdict(operation))
    return operation


def finish(connection: Connection, request_id: str, status: Status, result_type: str, result: bytes) -> None:
    """Write a result."""
    connection.execute(
        update(operations)
        .where(operations.c.request_id == request_id)
        .values(status=status, result_type=result_type, result=result, finished_at=time())
    )


def find(connection: Connection, request_id: str) -> Operation | None:
    """The operation of that id, without its payload."""
    return _without_payload(connection, operations.c.request_id == request_id)


def _without_payload(connection: Connection, *conditions: ColumnElement[bool]) -> Operation | None:
    columns = [column for column in operations.c if column.name != "payload"]
    row = connection.execute(select(*columns).where(*conditions)).one_or_none()
    return Operation(**row._mapping, payload=b"") if row is not None else None


def pending(connection: Connection) -> list[Operation]:
    """All operations without a result, in the order of their streams."""
    query = (
        select(operations)
        .where(operations.c.status == Status.PENDING)
        .order_by(operations.c.stream, operations.c.seq_id)
    )
    return [Operation(**row._mapping) for row in connection.execute(query)]


def finished(connection: Connection, stream: str) -> list[Operation]:
    """A stream's operations that have a result, in order."""
    query = (
        select(operations)
        .where(operations.c.stream == stream, operations.c.status != Status.PENDING)
        .order_by(operations.c.seq_id)
    )
    return [Operation(**row._mapping) for row in connection.execute(query)]
