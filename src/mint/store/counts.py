"""How much there is: of one owner, for limits; of all, for metrics."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from mint.store.schema import Status, checkpoints, operations, runs, sessions


def live_runs(connection: Connection, owner: str | None, heard_since: float) -> int:
    """Runs of sessions that are open and were heard of since then; of all owners for None."""
    query = select(func.count()).select_from(runs.join(sessions))
    query = query.where(sessions.c.finished_at.is_(None), sessions.c.last_heartbeat >= heard_since)
    return int(connection.execute(query if owner is None else query.where(runs.c.owner == owner)).scalar_one())


def open_sessions(connection: Connection, heard_since: float) -> int:
    """Sessions that are open and were heard of since then."""
    query = select(func.count()).select_from(sessions)
    query = query.where(sessions.c.finished_at.is_(None), sessions.c.last_heartbeat >= heard_since)
    return int(connection.execute(query).scalar_one())


def pending_operations(connection: Connection, owner: str) -> int:
    """Journaled operations of an owner that have no result."""
    query = select(func.count()).select_from(operations)
    query = query.where(operations.c.status == Status.PENDING, operations.c.owner == owner)
    return int(connection.execute(query).scalar_one())


def pending_by_kind(connection: Connection) -> dict[str, int]:
    """Journaled operations without a result."""
    query = select(operations.c.kind, func.count()).where(operations.c.status == Status.PENDING)
    return {row[0]: row[1] for row in connection.execute(query.group_by(operations.c.kind))}


@dataclass(frozen=True)
class Storage:
    """Checkpoints of one owner in one project."""

    project_id: str | None
    owner: str
    count: int
    size_bytes: int


def storage(connection: Connection, owner: str | None, project_id: str | None) -> list[Storage]:
    """What is stored, by project and owner; of one owner or project only, where one is given."""
    total = func.sum(checkpoints.c.size_bytes)
    groups = sessions.c.project_id, checkpoints.c.owner
    query = select(*groups, func.count(), total).select_from(checkpoints.join(runs).join(sessions))
    if owner is not None:
        query = query.where(checkpoints.c.owner == owner)
    if project_id is not None:
        query = query.where(sessions.c.project_id == project_id)
    rows = connection.execute(query.group_by(*groups).order_by(total.desc(), *groups))
    return [Storage(project, whose, count, int(size)) for project, whose, count, size in rows]


def stored_bytes(connection: Connection, owner: str) -> int:
    """Of an owner's checkpoints, expired and replaced ones included as long as their files are there."""
    query = select(func.coalesce(func.sum(checkpoints.c.size_bytes), 0)).where(checkpoints.c.owner == owner)
    return int(connection.execute(query).scalar_one())
