"""Checkpoint rows: names of committed folders, and what becomes of a folder that has lost its last name.

A name goes in one transaction. The folder it leaves without a name is then `discarded`: nobody new can come to read it,
and its files are deleted once nobody does. Readers are samplers, operations without a result, and runs whose replay
loads it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from time import time
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    union_all,
    update,
)

from mint.store import repository
from mint.store.schema import (
    Checkpoint,
    Status,
    checkpoints,
    discarded,
    expiring,
    heard_of,
    named,
    named_checkpoints,
    operations,
    runs,
    samplers,
    sessions,
    weights_tokens,
)

ABANDONED_SECONDS = 24 * 3600.0
"""Samplers of a client that has been silent for so long do not keep their checkpoints; a laptop may sleep overnight."""


def unexpired() -> ColumnElement[bool]:
    """Whether a row's time has not run out."""
    return or_(checkpoints.c.expires_at.is_(None), checkpoints.c.expires_at > time())


def live(connection: Connection, path: str) -> Checkpoint | None:
    """The checkpoint of that path, unless it has expired."""
    return _unless_expired(repository.find(connection, Checkpoint, path=path))


def live_by_id(connection: Connection, checkpoint_id: str) -> Checkpoint | None:
    """The checkpoint of that id, unless it has expired."""
    return _unless_expired(repository.find(connection, Checkpoint, checkpoint_id=checkpoint_id))


def _unless_expired(checkpoint: Checkpoint | None) -> Checkpoint | None:
    if checkpoint is None or (checkpoint.expires_at is not None and checkpoint.expires_at <= time()):
        return None
    return checkpoint


def put(connection: Connection, checkpoint: Checkpoint, *, overwrite: bool = False) -> bool:
    """Add a checkpoint; False if its path is taken and `overwrite` is not asked for. An expired one takes no path."""
    if checkpoint.path is not None and (old := repository.find(connection, Checkpoint, path=checkpoint.path)):
        if not overwrite and live(connection, checkpoint.path) is not None:
            return False
        remove(connection, old)
    repository.insert(connection, checkpoint)
    if checkpoint.path is not None:
        _count_named(connection, checkpoint.owner, 1)
    return True


def _count_named(connection: Connection, owner: str, more: int) -> None:
    mine = named_checkpoints.c.owner == owner
    query = update(named_checkpoints).where(mine).values(total=named_checkpoints.c.total + more)
    if connection.execute(query).rowcount == 0:
        connection.execute(named_checkpoints.insert(), {"owner": owner, "total": more})


def count_named(connection: Connection, owner: str) -> int:
    """An owner's named checkpoints that have not expired."""
    kept = select(named_checkpoints.c.total).where(named_checkpoints.c.owner == owner)
    mine = checkpoints.c.owner == owner
    over = select(func.count()).where(named, expiring, mine, checkpoints.c.expires_at <= time())
    return (connection.scalar(kept) or 0) - (connection.scalar(over) or 0)


def remove(connection: Connection, *gone: Checkpoint) -> None:
    """Take names away, and their access tokens; with its last name, a folder is discarded."""
    ids = [checkpoint.checkpoint_id for checkpoint in gone]
    directories = {checkpoint.directory for checkpoint in gone}
    connection.execute(delete(checkpoints).where(checkpoints.c.checkpoint_id.in_(ids)))
    connection.execute(delete(weights_tokens).where(weights_tokens.c.checkpoint_id.in_(ids)))
    for owner, count in Counter(checkpoint.owner for checkpoint in gone if checkpoint.path is not None).items():
        _count_named(connection, owner, -count)
    named = select(checkpoints.c.directory).where(checkpoints.c.directory.in_(directories))
    unnamed = directories.difference(connection.scalars(named))
    if unnamed:
        now = time()
        connection.execute(discarded.insert(), [{"directory": name, "discarded_at": now} for name in unnamed])


def shared(connection: Connection, checkpoint: Checkpoint) -> bool:
    """Whether another checkpoint names the same folder."""
    same = checkpoints.c.directory == checkpoint.directory
    other = checkpoints.c.checkpoint_id != checkpoint.checkpoint_id
    return connection.execute(select(checkpoints.c.checkpoint_id).where(same, other).limit(1)).first() is not None


def change(connection: Connection, checkpoint: Checkpoint, **values: object) -> None:
    """Set columns of a row."""
    query = update(checkpoints).where(checkpoints.c.checkpoint_id == checkpoint.checkpoint_id)
    connection.execute(query.values(**values))


# --- who reads a folder -------------------------------------------------------------------------------------


def reader(connection: Connection, checkpoint: Checkpoint, replayed: Collection[str], heard_since: float) -> str | None:
    """What of its owner's is reading a checkpoint's folder at this time, in words; None if nothing is.

    Args:
        replayed: kinds of operations that recovery runs again.
        heard_since: a session that was not heard of since then reads nothing.
    """
    of_samplers, of_operations, of_runs = _readers(replayed)
    alive = heard_of(heard_since)
    of_folder, owner = checkpoint.directory, checkpoint.owner
    for words, query in (
        ("sampler", of_samplers.where(samplers.c.directory == of_folder, samplers.c.owner == owner, alive)),
        ("operation", of_operations.where(operations.c.directory == of_folder, operations.c.owner == owner)),
        ("run", of_runs.where(operations.c.directory == of_folder, runs.c.owner == owner, alive)),
    ):
        if (found := connection.execute(query.limit(1)).first()) is not None:
            return f"{words} {found[0]}"
    return None


def _readers(
    replayed: Collection[str] | BindParameter[str],
) -> tuple[Select[tuple[str]], Select[tuple[str]], Select[tuple[str]]]:
    """Ids of samplers, of operations without a result, and of runs that a replay would load again."""
    of_samplers = select(samplers.c.sampler_id).join(sessions, sessions.c.session_id == samplers.c.session_id)
    of_operations = select(operations.c.request_id).where(operations.c.status == Status.PENDING)
    of_runs = (
        select(runs.c.run_id)
        .join(operations, operations.c.stream == runs.c.run_id)
        .join(sessions, sessions.c.session_id == runs.c.session_id)
        .where(operations.c.status == Status.DONE, operations.c.kind.in_(replayed))
    )
    return of_samplers, of_operations, of_runs


# --- what the sweeper does ----------------------------------------------------------------------------------


def expire(connection: Connection, limit: int) -> int:
    """Take away names whose time has run out, at most `limit`; returns how many there were."""
    return _remove_all(connection, _EXPIRED, {"now_": time(), "limit_": limit})


def forget_unnamed(connection: Connection, session_id: str, limit: int) -> int:
    """Drop revisions that live with a session, at most `limit`; returns how many there were."""
    return _remove_all(connection, _UNNAMED, {"session_id_": session_id, "limit_": limit})


def _remove_all(connection: Connection, query: Select[Any], values: dict[str, object]) -> int:
    rows = [Checkpoint(**row._mapping) for row in connection.execute(query, values)]
    if rows:
        remove(connection, *rows)
    return len(rows)


def deletable(connection: Connection, replayed: Collection[str], held: Collection[str], limit: int) -> list[str]:
    """Discarded folders that nobody reads, at most `limit`. Nobody ever will: there is no name to find them by.

    A sampler does not keep a revision that never had a name: that one was discarded because their session is over.

    Args:
        replayed: kinds of operations that recovery runs again.
        held: folders that are read without a row that says so.
    """
    values = {"replayed_": list(replayed), "held_": list(held), "since_": time() - ABANDONED_SECONDS, "limit_": limit}
    return list(connection.scalars(_DELETABLE, values))


def _deletable() -> Select[tuple[str]]:
    of_samplers, of_operations, of_runs = _readers(bindparam("replayed_", expanding=True))
    open_ = sessions.c.finished_at.is_(None)
    folder, named_once = discarded.c.directory, samplers.c.model_path.is_not(None)
    lately = sessions.c.last_heartbeat > bindparam("since_")
    query = select(folder).where(
        folder.not_in(bindparam("held_", expanding=True)),
        ~exists(of_samplers.where(samplers.c.directory == folder, named_once, open_, lately).correlate(discarded)),
        ~exists(of_operations.where(operations.c.directory == folder).correlate(discarded)),
        ~exists(of_runs.where(operations.c.directory == folder, open_).correlate(discarded)),
    )
    return query.order_by(discarded.c.discarded_at).limit(bindparam("limit_"))


# statements are built once: that takes longer than running them
_DELETABLE = _deletable()
_EXPIRED = (
    select(checkpoints)
    .where(expiring, checkpoints.c.expires_at <= bindparam("now_"))
    .order_by(checkpoints.c.expires_at)
    .limit(bindparam("limit_"))
)
_UNNAMED = select(checkpoints).where(checkpoints.c.session_id == bindparam("session_id_")).limit(bindparam("limit_"))


def deleted(connection: Connection, directories: Sequence[str]) -> None:
    """The files of discarded folders are gone."""
    connection.execute(delete(discarded).where(discarded.c.directory.in_(directories)))


def accounted_for(connection: Connection, directories: Sequence[str]) -> set[str]:
    """Those of some folders that a row knows: named, discarded, or about to be by an operation without a result."""
    return set(
        connection.scalars(
            union_all(
                select(checkpoints.c.directory).where(checkpoints.c.directory.in_(directories)),
                select(discarded.c.directory).where(discarded.c.directory.in_(directories)),
                _unfinished(directories),
            )
        )
    )


def being_written(connection: Connection, directories: Sequence[str]) -> set[str]:
    """Those of some folders that belong to an operation without a result."""
    return set(connection.scalars(_unfinished(directories)))


def _unfinished(directories: Sequence[str]) -> Select[tuple[str]]:
    """A folder has the name of the operation that writes it."""
    pending = operations.c.status == Status.PENDING
    return select(operations.c.request_id).where(operations.c.request_id.in_(directories), pending)
