"""Search of sessions: filters that must all hold, newest first, page by page after the last one seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, and_, false, func, or_, select, tuple_

from mint.store.checkpoints import unexpired
from mint.store.schema import Session, checkpoints, heard_of, named, runs, sessions, total


@dataclass(frozen=True)
class StatusFilter:
    """One status to find; `reasons` narrows "client_finished" down."""

    type: str
    reasons: Sequence[str] | None = None


@dataclass(frozen=True)
class SessionFilter:
    """What sessions are looked for; None matches all.

    A session matches `session_id` or `display_name` where both are given. Each word of `display_name` is somewhere in
    the session's, in either case. Active are those that were heard of since `heard_since`, in Unix seconds.
    """

    owner: str
    heard_since: float
    session_id: str | None = None
    display_name: str | None = None
    project_ids: Sequence[str] | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    statuses: Sequence[StatusFilter] | None = None


@dataclass(frozen=True)
class SessionView:
    """A session, what its runs have saved, and whether its client is known to be running."""

    session: Session
    checkpoints_count: int
    size_bytes: int
    is_live: bool


def search(connection: Connection, wanted: SessionFilter, limit: int, after: Session | None) -> list[SessionView]:
    """At most `limit` sessions, newest first; those after `after`, if it is given."""
    query = select(sessions).where(sessions.c.owner == wanted.owner, *_conditions(wanted))
    if after is not None:
        place = tuple_(sessions.c.created_at, sessions.c.session_id)
        query = query.where(place < tuple_(after.created_at, after.session_id))
    query = query.order_by(sessions.c.created_at.desc(), sessions.c.session_id.desc())
    found = connection.execute(query.limit(limit)).all()
    return [_view(connection, Session(**row._mapping), wanted.heard_since) for row in found]


def _conditions(wanted: SessionFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    names = []
    if wanted.session_id is not None:
        names.append(sessions.c.session_id == wanted.session_id)
    if wanted.display_name is not None:
        words = wanted.display_name.split()
        names.append(and_(*(sessions.c.display_name.icontains(word, autoescape=True) for word in words)))
    if names:
        conditions.append(or_(*names))
    if wanted.project_ids is not None:
        conditions.append(sessions.c.project_id.in_(wanted.project_ids))
    if wanted.statuses is not None:
        conditions.append(or_(*(_status(status, wanted.heard_since) for status in wanted.statuses)))
    metadata = sessions.c.user_metadata
    return conditions + [metadata[key].as_string() == value for key, value in wanted.user_metadata.items()]


def _status(status: StatusFilter, heard_since: float) -> ColumnElement[bool]:
    if status.type == "active":
        return heard_of(heard_since)
    if status.type == "client_finished":
        finished = sessions.c.finished_at.is_not(None)
        return finished if status.reasons is None else and_(finished, sessions.c.finish_reason.in_(status.reasons))
    return false()  # nothing here cancels or fails a session


def _view(connection: Connection, session: Session, heard_since: float) -> SessionView:
    query = (
        select(func.count(), total(checkpoints.c.size_bytes))
        .join(runs, runs.c.run_id == checkpoints.c.run_id)
        .where(runs.c.session_id == session.session_id, named, unexpired())
    )
    count, size = connection.execute(query).one()
    is_live = session.finished_at is None and session.last_heartbeat >= heard_since
    return SessionView(session, count, size, is_live)
