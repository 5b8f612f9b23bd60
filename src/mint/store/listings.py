"""Lists of runs, sessions and checkpoints: newest first, by page, with true totals; and what they hold in sum.

Every query is answered from an index; `tests/store/test_indexes.py` reads the plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import time
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    union_all,
)

from mint.store.checkpoints import count_named, unexpired
from mint.store.schema import (
    Checkpoint,
    CheckpointKind,
    Run,
    Status,
    checkpoints,
    heard_of,
    named,
    operations,
    published,
    runs,
    sessions,
    total,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """Which part of a list."""

    limit: int
    offset: int


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, and how long the list is."""

    rows: list[T]
    total: int


@dataclass(frozen=True)
class RunView:
    """A run with what has become of it.

    `created` is False for a run whose first operation failed: there is nothing in it. Of the checkpoints, the newest.
    """

    run: Run
    last_request_at: float
    created: bool
    last_checkpoint: Checkpoint | None
    last_sampler_checkpoint: Checkpoint | None


# --- checkpoints --------------------------------------------------------------------------------------------


def checkpoints_of_owner(
    connection: Connection, owner: str, window: Window, *, external: bool = True
) -> Page[Checkpoint]:
    """All named checkpoints of an owner, those for download only if `external`."""
    query = select(checkpoints).where(named, checkpoints.c.owner == owner, unexpired(), *_kinds(external))
    newest = "created_at", "path"
    if not external:
        return _page(connection, Checkpoint, [query], window, newest)
    return Page(_rows(connection, Checkpoint, query, window, newest), count_named(connection, owner))


def checkpoints_of_run(connection: Connection, run_id: str, *, public: bool, external: bool = True) -> list[Checkpoint]:
    """A run's named checkpoints, those for download only if `external`; with `public`, those that are published."""
    query = select(checkpoints).where(named, checkpoints.c.run_id == run_id, unexpired(), *_kinds(external))
    query = query.where(published) if public else query
    rows = connection.execute(query.order_by(checkpoints.c.created_at.desc(), checkpoints.c.path.desc()))
    return [Checkpoint(**row._mapping) for row in rows]


def _kinds(external: bool) -> list[ColumnElement[bool]]:
    return [] if external else [checkpoints.c.kind != CheckpointKind.EXTERNAL]


@dataclass(frozen=True)
class StoredBytes:
    """What the checkpoints of one owner in one project hold; copies take no bytes of their own."""

    project_id: str
    owner: str
    count: int
    size_bytes: int


def stored_bytes(connection: Connection, owner: str | None, project_id: str | None) -> list[StoredBytes]:
    """Storage by project and owner, the largest first; of one owner or project only, where one is given."""
    size = func.max(checkpoints.c.size_bytes).label("size_bytes")
    folders = (
        select(sessions.c.project_id, checkpoints.c.owner, func.count().label("names"), size)
        .join(runs, runs.c.run_id == checkpoints.c.run_id)
        .join(sessions, sessions.c.session_id == runs.c.session_id)
        .where(named, unexpired())
        .where(*([checkpoints.c.owner == owner] if owner is not None else []))
        .where(*([sessions.c.project_id == project_id] if project_id is not None else []))
        .group_by(sessions.c.project_id, checkpoints.c.owner, checkpoints.c.directory)
        .subquery()
    )
    groups, size_bytes = (folders.c.project_id, folders.c.owner), total(folders.c.size_bytes)
    query = select(*groups, total(folders.c.names), size_bytes).group_by(*groups)
    return [StoredBytes(*row) for row in connection.execute(query.order_by(size_bytes.desc(), *groups))]


# --- runs ---------------------------------------------------------------------------------------------------


def runs_of_owner(
    connection: Connection, owner: str, window: Window, *, project_id: str | None = None, accessible: bool = False
) -> Page[RunView]:
    """An owner's runs; with `accessible`, also those of others that have a published checkpoint."""
    parts = [runs.c.owner == owner]
    if accessible:
        shared = select(checkpoints.c.run_id).where(published, unexpired())
        parts.append(and_(runs.c.owner != owner, runs.c.run_id.in_(shared)))
    if project_id is not None:
        # the owner is the same, and is said so that the index of an owner's projects may be used
        same = and_(sessions.c.session_id == runs.c.session_id, sessions.c.owner == runs.c.owner)
        of_project = and_(same, sessions.c.project_id == project_id)
        parts = [and_(part, exists().where(of_project)) for part in parts]
    page = _page(connection, Run, [select(runs).where(part) for part in parts], window, ("created_at", "run_id"))
    return Page([view(connection, run, public=run.owner != owner) for run in page.rows], page.total)


def live_runs(connection: Connection, owner: str, heard_since: float, window: Window) -> Page[Run]:
    """An owner's runs in sessions that are open and were heard of since then, in Unix seconds."""
    query = select(runs).join(sessions, sessions.c.session_id == runs.c.session_id)
    query = query.where(runs.c.owner == owner, runs.c.copied.is_(False), heard_of(heard_since))
    return _page(connection, Run, [query], window, ("created_at", "run_id"))


def view(connection: Connection, run: Run, *, public: bool) -> RunView:
    """A run with what has become of it; with `public`, no more of it than its published checkpoints."""
    last_request_at, status = connection.execute(_FATE, {"run_id_": run.run_id}).one()
    return RunView(
        replace(run, user_metadata=None) if public else run,
        last_request_at if last_request_at is not None else run.created_at,
        status != Status.FAILED,
        _newest(connection, run, CheckpointKind.TRAINING, public=public),
        _newest(connection, run, CheckpointKind.SAMPLER, public=public),
    )


def _newest(connection: Connection, run: Run, kind: CheckpointKind, *, public: bool) -> Checkpoint | None:
    query = _NEWEST.where(published) if public else _NEWEST
    row = connection.execute(query, {"run_id_": run.run_id, "kind_": kind, "now_": time()}).one_or_none()
    return Checkpoint(**row._mapping) if row is not None else None


# statements are built once: that takes longer than running them
_OF_RUN = operations.c.stream == bindparam("run_id_")
_FATE = select(
    select(operations.c.created_at).where(_OF_RUN).order_by(operations.c.seq_id.desc()).limit(1).scalar_subquery(),
    select(operations.c.status).where(_OF_RUN, operations.c.seq_id == 0).scalar_subquery(),
)
"""When the last operation of a run was accepted, and how the first one ended."""
_NEWEST = (
    select(checkpoints)
    .where(named, checkpoints.c.run_id == bindparam("run_id_"), checkpoints.c.kind == bindparam("kind_"))
    .where(or_(checkpoints.c.expires_at.is_(None), checkpoints.c.expires_at > bindparam("now_")))
    .order_by(checkpoints.c.created_at.desc())
    .limit(1)
)


# --- sessions -----------------------------------------------------------------------------------------------


def session_ids_of_owner(connection: Connection, owner: str, window: Window) -> list[str]:
    """An owner's sessions."""
    query = select(sessions.c.session_id).where(sessions.c.owner == owner)
    query = query.order_by(sessions.c.created_at.desc(), sessions.c.session_id.desc())
    return list(connection.scalars(query.limit(window.limit).offset(window.offset)))


def _page(
    connection: Connection, kind: type[T], parts: Sequence[Select[Any]], window: Window, newest: Sequence[str]
) -> Page[T]:
    """A window of the rows of some queries, the largest in the columns `newest` first, and the number of them all."""
    query = union_all(*parts) if len(parts) > 1 else parts[0]
    counts = [part.with_only_columns(func.count(), maintain_column_froms=True) for part in parts]
    total = sum(connection.scalar(count) or 0 for count in counts)
    return Page(_rows(connection, kind, query, window, newest), total)


def _rows(
    connection: Connection,
    kind: type[T],
    query: Select[Any] | CompoundSelect[Any],
    window: Window,
    newest: Sequence[str],
) -> list[T]:
    order = [query.selected_columns[name].desc() for name in newest]
    rows = connection.execute(query.order_by(*order).limit(window.limit).offset(window.offset))
    return [kind(**row._mapping) for row in rows]
