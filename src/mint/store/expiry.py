"""What is deleted after a while: answers that nobody asks for any more, and sessions that nobody comes back to.

Usage and the audit log are kept: they are counted and written when things happen, and need no other rows.
"""

from __future__ import annotations

from collections.abc import Collection
from time import time

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, or_, select, update

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
)


def forget_answers(connection: Connection, before: float, independent: Collection[str], limit: int) -> int:
    """Delete operations that ended before then, at most `limit`; returns how many there were.

    Of a run, only those below its snapshot: of these, no recovery needs the body and no retry is carried out again,
    since the run is past them. The first stays, which says how the run was made.

    Args:
        independent: kinds of operations that do not build on each other.
    """
    passed = exists().where(snapshots.c.run_id == operations.c.stream, snapshots.c.seq_id > operations.c.seq_id)
    deletable = or_(operations.c.kind.in_(independent), and_(operations.c.seq_id > 0, passed))
    query = select(operations.c.request_id).where(ended, operations.c.finished_at < before, deletable)
    return _delete_operations(connection, query.order_by(operations.c.finished_at).limit(limit))


def _delete_operations(connection: Connection, query: Select[tuple[str]]) -> int:
    ids = list(connection.scalars(query))
    connection.execute(delete(operations).where(operations.c.request_id.in_(ids)))
    return len(ids)


# --- sessions -----------------------------------------------------------------------------------------------


def _of_session(session_id: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Whether an operation is one of a session's."""
    of_runs = select(runs.c.run_id).where(runs.c.session_id == session_id).correlate(sessions)
    of_samplers = select(samplers.c.sampler_id).where(samplers.c.session_id == session_id).correlate(sessions)
    losses = operations.c.stream == session_id + ":loss"
    return or_(operations.c.stream.in_(of_runs), operations.c.stream.in_(of_samplers), losses)


def over(connection: Connection, finished_before: float, silent_before: float, limit: int) -> list[str]:
    """Sessions that have been finished, or silent, since before then, at most `limit`.

    One that has an operation without a result is not over: a process that serves its model will carry it out. A client
    that sends no heartbeats is heard of by its operations.
    """
    mine = _of_session(sessions.c.session_id)
    waiting = exists().where(operations.c.status == Status.PENDING, mine).correlate(sessions)
    lately = exists().where(operations.c.created_at >= silent_before, mine).correlate(sessions)
    finished, silent = sessions.c.finished_at < finished_before, sessions.c.last_heartbeat < silent_before
    query = select(sessions.c.session_id).where(
        remembered,
        sessions.c.last_heartbeat < max(finished_before, silent_before),
        or_(finished, and_(sessions.c.finished_at.is_(None), silent, ~lately)),
        ~waiting,
    )
    return list(connection.scalars(query.order_by(sessions.c.last_heartbeat).limit(limit)))


def snapshots_of_finished(connection: Connection, limit: int) -> list[RunSnapshot]:
    """Snapshots of finished sessions that have no operation without a result, at most `limit`; nothing needs them."""
    waiting = exists().where(operations.c.stream == snapshots.c.run_id, operations.c.status == Status.PENDING)
    query = select(snapshots).join(runs, runs.c.run_id == snapshots.c.run_id)
    query = query.join(sessions, sessions.c.session_id == runs.c.session_id)
    found = connection.execute(query.where(sessions.c.finished_at.is_not(None), ~waiting).limit(limit))
    return [RunSnapshot(**row._mapping) for row in found]


def drop_snapshots(connection: Connection, run_ids: Collection[str]) -> None:
    """The folders of these runs are gone."""
    connection.execute(delete(snapshots).where(snapshots.c.run_id.in_(run_ids)))


def forget_operations(connection: Connection, session_id: str, limit: int) -> int:
    """Delete operations of a session that is over, at most `limit`; returns how many there were."""
    query = select(operations.c.request_id).where(_of_session(session_id))
    return _delete_operations(connection, query.limit(limit))


def forget_session(connection: Connection, session_id: str) -> None:
    """Delete what else there is of a session whose operations are gone; runs that hold checkpoints stay, and it."""
    for table in (samplers, custom_losses):
        connection.execute(delete(table).where(table.c.session_id == session_id))
    connection.execute(update(sessions).where(sessions.c.session_id == session_id).values(forgotten_at=time()))
    _delete_empty(connection, [session_id])


def forget_empty(connection: Connection, limit: int) -> int:
    """Delete forgotten sessions whose last checkpoint is gone, at most `limit`; returns how many there were."""
    holding = exists().where(checkpoints.c.run_id == runs.c.run_id, runs.c.session_id == sessions.c.session_id)
    query = select(sessions.c.session_id).where(forgotten, ~holding.correlate(sessions)).limit(limit)
    found = list(connection.scalars(query))
    _delete_empty(connection, found)
    return len(found)


def _delete_empty(connection: Connection, session_ids: Collection[str]) -> None:
    holding = exists().where(checkpoints.c.run_id == runs.c.run_id)
    connection.execute(delete(runs).where(runs.c.session_id.in_(session_ids), ~holding))
    left = exists().where(runs.c.session_id == sessions.c.session_id)
    connection.execute(delete(sessions).where(sessions.c.session_id.in_(session_ids), ~left))
