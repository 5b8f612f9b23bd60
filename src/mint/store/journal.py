"""The operation journal: a request is here before it is acknowledged, its result before it is announced."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import time
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, update

from mint.store.schema import Operation, Status, operations

# statements are built once: that takes longer than running them
_STORED = [column for column in operations.c if column.name != "payload"]
_BY_NUMBER = select(*_STORED).where(
    operations.c.stream == bindparam("stream_"), operations.c.seq_id == bindparam("seq_id_")
)
_BY_ID = select(*_STORED).where(operations.c.request_id == bindparam("request_id_"))
_INSERT = operations.insert()
_FINISH = (
    update(operations)
    .where(operations.c.request_id == bindparam("request_id_"))
    .values({name: bindparam(name) for name in ("status", "result_type", "result", "finished_at")})
)
_FINISH_FOR_GOOD = _FINISH.values(payload=b"")


def known(connection: Connection, stream: str, seq_id: int) -> Operation | None:
    """The operation that a stream already has under this number, without its payload."""
    return _without_payload(connection, _BY_NUMBER, {"stream_": stream, "seq_id_": seq_id})


def append(connection: Connection, operation: Operation) -> Operation:
    """Journal a request, or return the one its stream has under this number already: this is a retry."""
    if (first := known(connection, operation.stream, operation.seq_id)) is not None:
        return first
    insert(connection, operation)
    return operation


def insert(connection: Connection, operation: Operation) -> None:
    """Journal a request whose number is not known yet."""
    connection.execute(_INSERT, asdict(operation))


def finish(  # an outcome
    connection: Connection,
    request_id: str,
    status: Status,
    result_type: str,
    result: bytes,
    *,
    keep_payload: bool = True,
) -> None:
    """Write a result; the request's body may be forgotten with it."""
    values = {"status": status, "result_type": result_type, "result": result, "finished_at": time()}
    connection.execute(_FINISH if keep_payload else _FINISH_FOR_GOOD, {"request_id_": request_id, **values})


def find(connection: Connection, request_id: str) -> Operation | None:
    """The operation of that id, without its payload."""
    return _without_payload(connection, _BY_ID, {"request_id_": request_id})


def _without_payload(connection: Connection, query: Select[Any], key: dict[str, Any]) -> Operation | None:
    row = connection.execute(query, key).one_or_none()
    return Operation(**row._mapping, payload=b"") if row is not None else None


@dataclass(frozen=True)
class Span:
    """When an operation was accepted and when it had its result, in seconds since the epoch."""

    request_id: str
    seq_id: int
    kind: str
    status: Status
    created_at: float
    finished_at: float | None


def spans(connection: Connection, stream: str) -> list[Span]:
    """A stream's operations in time, in the order of their numbers."""
    columns = [operations.c[name] for name in Span.__dataclass_fields__]
    query = select(*columns).where(operations.c.stream == stream).order_by(operations.c.seq_id)
    return [Span(**row._mapping) for row in connection.execute(query)]


def pending(connection: Connection) -> list[Operation]:
    """All operations without a result, in the order in which they came."""
    query = (
        select(operations)
        .where(operations.c.status == Status.PENDING)
        .order_by(operations.c.created_at, operations.c.stream, operations.c.seq_id)
    )
    return [Operation(**row._mapping) for row in connection.execute(query)]


def finished(connection: Connection, stream: str, after: int) -> list[Operation]:
    """A stream's operations with a result and a number greater than `after`, in order."""
    rows = connection.execute(_FINISHED, {"stream_": stream, "after_": after})
    return [Operation(**row._mapping) for row in rows]


_FINISHED = (
    select(operations)
    .where(operations.c.stream == bindparam("stream_"), operations.c.seq_id > bindparam("after_"))
    .where(operations.c.status != Status.PENDING)
    .order_by(operations.c.seq_id)
)


@dataclass(frozen=True)
class Outcome:
    """How an operation ended, and how many bytes its result has."""

    request_id: str
    status: Status
    size: int


def outcomes(connection: Connection, stream: str, numbers: range, since: float) -> list[Outcome]:
    """Of a stream's operations with such numbers, those that ended at or after a time, in seconds since the epoch."""
    query = select(operations.c.request_id, operations.c.status, func.length(operations.c.result)).where(
        operations.c.stream == stream,
        operations.c.seq_id >= numbers.start,
        operations.c.seq_id < numbers.stop,
        operations.c.finished_at >= since,
    )
    rows = connection.execute(query.order_by(operations.c.finished_at))
    return [Outcome(request_id, Status(status), size or 0) for request_id, status, size in rows]


def drop_payloads(connection: Connection, stream: str, up_to: int) -> None:
    """Forget the bodies of finished operations with numbers up to `up_to`, and which folders they read."""
    connection.execute(_DROP, {"stream_": stream, "up_to_": up_to})


_DROP = (
    update(operations)
    .where(operations.c.stream == bindparam("stream_"), operations.c.seq_id <= bindparam("up_to_"))
    .where(operations.c.status != Status.PENDING, operations.c.payload != b"")
    .values(payload=b"", directory=None)
)
