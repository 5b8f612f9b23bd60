"""Reading and writing rows. Each function takes a transaction's connection: several make one transaction."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from time import time
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, bindparam, select, update

from mint.store.schema import (
    Checkpoint,
    CustomLoss,
    Run,
    RunSnapshot,
    Sampler,
    Session,
    checkpoints,
    custom_losses,
    runs,
    samplers,
    sessions,
    snapshots,
)

R = TypeVar("R", Session, Run, Checkpoint, Sampler, CustomLoss, RunSnapshot)

TABLES: dict[type[Any], Table] = {
    Session: sessions,
    Run: runs,
    Checkpoint: checkpoints,
    Sampler: samplers,
    CustomLoss: custom_losses,
    RunSnapshot: snapshots,
}


def insert(connection: Connection, row: Session | Run | Checkpoint | Sampler | CustomLoss | RunSnapshot) -> None:
    """Add a row."""
    connection.execute(TABLES[type(row)].insert(), asdict(row))


def find(connection: Connection, kind: type[R], **values: object) -> R | None:
    """The row whose columns have these values, which are a key of its table; None if there is none."""
    row = connection.execute(_find_query(TABLES[kind], tuple(values)), values).one_or_none()
    return kind(**row._mapping) if row is not None else None


@cache
def _find_query(table: Table, names: tuple[str, ...]) -> Select[Any]:
    """Built once: that takes longer than running it."""
    return select(table).where(*(table.c[name] == bindparam(name) for name in names))


def touch_session(connection: Connection, session_id: str) -> None:
    """Note that the session's client lives."""
    connection.execute(_TOUCH, {"session_id_": session_id, "now_": time()})


_TOUCH = (
    update(sessions).where(sessions.c.session_id == bindparam("session_id_")).values(last_heartbeat=bindparam("now_"))
)


def finish_session(connection: Connection, session_id: str, reason: str, detail: str | None) -> bool:
    """End a session; False if it had ended before, which then stands."""
    query = (
        update(sessions)
        .where(sessions.c.session_id == session_id, sessions.c.finished_at.is_(None))
        .values(finished_at=time(), finish_reason=reason, finish_detail=detail)
    )
    return connection.execute(query).rowcount == 1


def run_ids_of_session(connection: Connection, session_id: str) -> list[str]:
    """The session's runs, in the order they were made."""
    query = select(runs.c.run_id).where(runs.c.session_id == session_id)
    return list(connection.scalars(query.order_by(runs.c.created_at, runs.c.run_id)))


def delete_sampler(connection: Connection, sampler_id: str) -> None:
    """Forget a sampler."""
    connection.execute(samplers.delete().where(samplers.c.sampler_id == sampler_id))


def sampler_ids_of_session(connection: Connection, session_id: str) -> list[str]:
    """The session's samplers, in the order of their numbers."""
    query = select(samplers.c.sampler_id).where(samplers.c.session_id == session_id)
    return list(connection.scalars(query.order_by(samplers.c.session_seq_id)))


def put_snapshot(connection: Connection, snapshot: RunSnapshot) -> RunSnapshot | None:
    """Make this the run's snapshot; returns the one before it."""
    before = find(connection, RunSnapshot, run_id=snapshot.run_id)
    if before is not None:
        connection.execute(snapshots.delete().where(snapshots.c.run_id == snapshot.run_id))
    insert(connection, snapshot)
    return before


def streams_of_session(connection: Connection, session_id: str) -> list[str]:
    """Names that the session's operations are journaled under."""
    return run_ids_of_session(connection, session_id) + sampler_ids_of_session(connection, session_id)


def assign_project(connection: Connection, session_id: str, project_id: str) -> None:
    """Move a session, and with it its runs and checkpoints, to a project."""
    connection.execute(update(sessions).where(sessions.c.session_id == session_id).values(project_id=project_id))


def put_sampler(connection: Connection, sampler: Sampler) -> Sampler:
    """Add a sampler, or return the one that its session already has under this number."""
    key = {"session_id": sampler.session_id, "session_seq_id": sampler.session_seq_id}
    if (known := find(connection, Sampler, **key)) is not None:
        return known
    insert(connection, sampler)
    return sampler


def follow(connection: Connection, run_id: str, seq_id: int, directory: str) -> None:
    """Lead the inflight samplers of a run to a revision, unless they have that of a later save."""
    query = update(samplers).where(samplers.c.inflight_run_id == run_id, samplers.c.inflight_seq_id < seq_id)
    connection.execute(query.values(directory=directory, inflight_seq_id=seq_id))


def count_clone(connection: Connection, sampler_id: str) -> int:
    """Another copy of a sampler's client; returns its number, from 1 on."""
    query = update(samplers).where(samplers.c.sampler_id == sampler_id)
    query = query.values(num_clones=samplers.c.num_clones + 1)
    return int(connection.execute(query.returning(samplers.c.num_clones)).scalar_one())


def sessions_with_revisions(connection: Connection) -> list[Session]:
    """Sessions that revisions without a name live with."""
    return [Session(**row._mapping) for row in connection.execute(_WITH_REVISIONS)]


_WITH_REVISIONS = select(sessions).where(
    sessions.c.session_id.in_(select(checkpoints.c.session_id).where(checkpoints.c.session_id.is_not(None)))
)


def put_session(connection: Connection, session: Session) -> Session:
    """Add a session, or return the one that a retry of the same call has made."""
    if session.idempotency_key is not None:
        key = {"owner": session.owner, "idempotency_key": session.idempotency_key}
        if (known := find(connection, Session, **key)) is not None:
            return known
    insert(connection, session)
    return session
