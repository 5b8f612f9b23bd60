"""What is deleted after a while: answers that nobody asks for any more, and sessions that nobody comes back to.

Usage and the audit log are kept: they are counted and written when things happen, and need no other rows.
"""

from __future__ import annotations

from collections.abc import Collection
from time import time
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    and_,
    bindparam,
    delete,
    exists,
    or_,
    select,
    union_all,
    update,
)

from mint.store.schema import (
    RunSnapshot,
    Status,
    checkpoints,
    custom_losses,
    ended,
    forgotten,
    operations,
    remembered,
    runs,
    samplers,
    sessions,
    snapshots,
    unnumbered,
)


def forget_answers(connection: Connection, before: float, independent: Collection[str], limit: int) -> int:
    """Delete operations that ended before then, at most `limit`; returns how many there were.

    Of a run, only those below its snapshot: of these, no recovery needs the body and no retry is carried out again,
    since the run is past them. The first stays, which says how the run was made.

    Args:
        independent: kinds of operations that do not build on each other.
    """
    values = {"before_": before, "independent_": list(independent), "limit_": limit}
    return _delete_operations(connection, _ANSWERS, values)


def _answers() -> Select[tuple[str]]:
    passed = exists().where(snapshots.c.run_id == operations.c.stream, snapshots.c.seq_id > operations.c.seq_id)
    independent = operations.c.kind.in_(bindparam("independent_", expanding=True))
    query = select(operations.c.request_id).where(
        ended, operations.c.finished_at < bindparam("before_"), or_(independent, and_(operations.c.seq_id > 0, passed))
    )
    return query.order_by(operations.c.finished_at).limit(bindparam("limit_"))


def _delete_operations(connection: Connection, query: Select[tuple[str]], values: dict[str, object]) -> int:
    ids = list(connection.scalars(query, values))
    if ids:
        connection.execute(delete(operations).where(operations.c.request_id.in_(ids)))
    return len(ids)


# --- sessions -----------------------------------------------------------------------------------------------


def over(connection: Connection, finished_before: float, silent_before: float, limit: int) -> list[str]:
    """Sessions that have been finished, or silent, since before then, at most `limit`.

    One that has an operation without a result is not over: a process that serves its model will carry it out. A client
    that sends no heartbeats is heard of by its operations.
    """
    values = {"finished_before_": finished_before, "silent_before_": silent_before, "limit_": limit}
    return list(connection.scalars(_OVER, values | {"heard_before_": max(finished_before, silent_before)}))


def _of_session(session_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether an operation is one of a session's."""
    of_runs = select(runs.c.run_id).where(runs.c.session_id == session_id)
    of_samplers = select(samplers.c.sampler_id).where(samplers.c.session_id == session_id)
    streams = (of_runs, of_samplers, select(session_id + ":loss"))
    # one list of names: with several, PostgreSQL reads all operations
    return operations.c.stream.in_(union_all(*(query.correlate(sessions) for query in streams)))


def _over() -> Select[tuple[str]]:
    mine = _of_session(sessions.c.session_id)
    waiting = exists().where(operations.c.status == Status.PENDING, mine).correlate(sessions)
    lately = exists().where(operations.c.created_at >= bindparam("silent_before_"), mine).correlate(sessions)
    finished = sessions.c.finished_at < bindparam("finished_before_")
    silent = and_(sessions.c.finished_at.is_(None), sessions.c.last_heartbeat < bindparam("silent_before_"))
    query = select(sessions.c.session_id).where(
        remembered,
        sessions.c.last_heartbeat < bindparam("heard_before_"),
        or_(finished, and_(silent, ~lately)),
        ~waiting,
    )
    return query.order_by(sessions.c.last_heartbeat).limit(bindparam("limit_"))


def snapshots_of_finished(connection: Connection, limit: int) -> list[RunSnapshot]:
    """Snapshots of finished sessions that have no operation without a result, at most `limit`; nothing needs them."""
    return [RunSnapshot(**row._mapping) for row in connection.execute(_USELESS, {"limit_": limit})]


def _useless() -> Select[Any]:
    waiting = exists().where(operations.c.stream == snapshots.c.run_id, operations.c.status == Status.PENDING)
    query = select(snapshots).join(runs, runs.c.run_id == snapshots.c.run_id)
    query = query.join(sessions, sessions.c.session_id == runs.c.session_id)
    return query.where(sessions.c.finished_at.is_not(None), ~waiting).limit(bindparam("limit_"))


def drop_snapshots(connection: Connection, run_ids: Collection[str]) -> None:
    """The folders of these runs are gone."""
    connection.execute(delete(snapshots).where(snapshots.c.run_id.in_(run_ids)))


def forget_operations(connection: Connection, session_id: str, limit: int) -> int:
    """Delete operations of a session that is over, at most `limit`; returns how many there were."""
    return _delete_operations(connection, _OPERATIONS, {"session_id_": session_id, "limit_": limit})


def forget_session(connection: Connection, session_id: str) -> None:
    """Delete what else there is of a session whose operations are gone; runs that hold checkpoints stay, and it."""
    of_session = select(runs.c.run_id).where(runs.c.session_id == session_id)
    connection.execute(delete(unnumbered).where(unnumbered.c.stream.in_(of_session)))
    for table in (samplers, custom_losses):
        connection.execute(delete(table).where(table.c.session_id == session_id))
    connection.execute(update(sessions).where(sessions.c.session_id == session_id).values(forgotten_at=time()))
    _delete_empty(connection, [session_id])


def forget_empty(connection: Connection, limit: int) -> int:
    """Delete forgotten sessions whose last checkpoint is gone, at most `limit`; returns how many there were."""
    found: list[str] = list(connection.scalars(_EMPTY, {"limit_": limit}))
    if found:
        _delete_empty(connection, found)
    return len(found)


def _empty() -> Select[tuple[str]]:
    holding = exists().where(checkpoints.c.run_id == runs.c.run_id, runs.c.session_id == sessions.c.session_id)
    return select(sessions.c.session_id).where(forgotten, ~holding.correlate(sessions)).limit(bindparam("limit_"))


def _delete_empty(connection: Connection, session_ids: Collection[str]) -> None:
    holding = exists().where(checkpoints.c.run_id == runs.c.run_id)
    connection.execute(delete(runs).where(runs.c.session_id.in_(session_ids), ~holding))
    left = exists().where(runs.c.session_id == sessions.c.session_id)
    connection.execute(delete(sessions).where(sessions.c.session_id.in_(session_ids), ~left))


# statements are built once: that takes longer than running them
_ANSWERS, _OVER, _USELESS, _EMPTY = _answers(), _over(), _useless(), _empty()
_OPERATIONS = (
    select(operations.c.request_id)
    .where(_of_session(bindparam("session_id_", type_=String)))
    .limit(bindparam("limit_"))
)
