"""How much there is: of one owner, for limits; of all, for metrics."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from mint.store.schema import Status, checkpoints, heard_of, operations, runs, sessions, snapshots, total


def live_runs(connection: Connection, owner: str | None, heard_since: float) -> int:
    """Runs of sessions that are open and were heard of since then; of all owners for None. Held copies are not live."""
    query = select(func.count()).select_from(runs.join(sessions)).where(runs.c.copied.is_(False))
    query = query.where(heard_of(heard_since))
    return int(connection.execute(query if owner is None else query.where(runs.c.owner == owner)).scalar_one())


def open_sessions(connection: Connection, heard_since: float) -> int:
    """Sessions that are open and were heard of since then."""
    query = select(func.count()).select_from(sessions)
    query = query.where(heard_of(heard_since))
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


def stored_bytes(connection: Connection, owner: str) -> int:
    """Of the folders that an owner's checkpoints and revisions name; one that has several names counts once."""
    size = func.max(checkpoints.c.size_bytes).label("size_bytes")
    folders = select(size).where(checkpoints.c.owner == owner).group_by(checkpoints.c.directory).subquery()
    return int(connection.execute(select(total(folders.c.size_bytes))).scalar_one())


def snapshot_state(connection: Connection) -> tuple[int, float | None]:
    """Bytes of all runs' snapshots, and when the newest was committed, in Unix seconds; None if there is none."""
    size, newest = total(snapshots.c.size_bytes), func.max(snapshots.c.created_at)
    row = connection.execute(select(size, newest)).one()
    return int(row[0]), row[1]
