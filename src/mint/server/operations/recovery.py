"""After a restart: what is unfinished is queued again, and runs are rebuilt from snapshots and the journal."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from time import time
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mint.dispatch.streams import History
from mint.engine.core import ForwardBackward, Planned, RestoreRun, SampleBatch
from mint.errors import SERVER_FAULT, MintError
from mint.server.catalog import Catalog
from mint.server.operations.dispatching import dispatch
from mint.server.operations.finishing import fail
from mint.server.operations.kinds import KINDS, recalled
from mint.server.operations.planning import PLANNING, aside, pool_for
from mint.server.services import Services
from mint.store import journal, repository
from mint.store.database import Database
from mint.store.schema import Operation, RunSnapshot, Status

logger = logging.getLogger(__name__)


async def take_up_lost(services: Services) -> None:
    """Whenever the database is there again, queue what was journaled as it went, and nobody was told of."""
    returned, loop = asyncio.Event(), asyncio.get_running_loop()
    services.database.on_return = partial(loop.call_soon_threadsafe, returned.set)
    await services.started.wait()
    while True:
        await returned.wait()
        returned.clear()
        try:
            await resume(services)
        except SQLAlchemyError:
            logger.exception("the journal cannot be read; the database's next return tries again")


async def resume(services: Services) -> int:
    """Queue what is unfinished and not under way in this process; returns how many operations.

    Those on a base model that is not served now stay in the journal for a process that serves it.
    """
    pending = await services.database.transaction(journal.pending)
    unfinished = [operation for operation in pending if not services.results.expects(operation.request_id)]
    served = [operation for operation in unfinished if services.fleet.model(operation.facts["model"]) is not None]
    if len(served) < len(unfinished):
        logger.warning("%d unfinished operations wait for models that are not served", len(unfinished) - len(served))
    for operation in served:
        await _take_up(services, operation)
    return len(served)


async def _take_up(services: Services, operation: Operation) -> None:
    kind, catalog = KINDS[operation.kind], services.catalog
    try:
        found = await services.database.transaction(lambda c: recalled(c, catalog, operation))
        request, command = await aside(pool_for(kind, catalog, operation.payload), _again, catalog, found)
    except SQLAlchemyError:
        raise
    except Exception as error:  # one operation does not keep the server from starting
        logger.exception("operation %s cannot be taken up", operation.request_id)
        await fail(services, operation, error if isinstance(error, MintError) else MintError(SERVER_FAULT))
        services.dispatcher.skip(operation.stream, operation.seq_id)
    else:
        dispatch(services, kind, operation, request, command)


def _again(catalog: Catalog, operation: Operation) -> tuple[Any, Planned]:
    """An operation of the journal as it was first read and planned."""
    kind = KINDS[operation.kind]
    request = kind.parse(operation.payload, operation.payload_type)
    return request, kind.plan(catalog, operation, request)


def snapshots_of(snapshot_dir: Path, run_id: str) -> Path:
    """The folder of a run's snapshots."""
    return snapshot_dir / quote(run_id, safe="")


class ServerJournal:
    """The journal as the dispatcher's recovery reads it, and the snapshots that recovery begins from."""

    def __init__(self, database: Database, catalog: Catalog, snapshot_dir: Path) -> None:
        self._database = database
        self._catalog = catalog
        self._snapshot_dir = snapshot_dir

    async def history(self, run_id: str) -> History:
        """See `mint.dispatch.streams.Journal`."""
        snapshot, finished = await self._database.transaction(partial(self._read, run_id=run_id))
        done = {operation.seq_id for operation in finished}
        # what lies below an executed operation and is not here never arrived, and was waited for long enough
        before = snapshot.seq_id if snapshot else -1
        executed = max((o.seq_id for o in finished if o.status == Status.DONE), default=before)
        next_seq_id = next(number for number in count(executed + 1) if number not in done)
        spent = frozenset(number for number in done if number > next_seq_id)
        # each by itself: a long history lets others plan in between, and the server end
        changing = (o for o in finished if o.status == Status.DONE and KINDS[o.kind].replayed)
        commands = [await self._command(operation) for operation in changing]
        replayed = [
            each
            for each in commands
            if not isinstance(each, SampleBatch) and not (isinstance(each, ForwardBackward) and each.forward_only)
        ]
        if snapshot is not None:
            folder = self._snapshot_dir / snapshot.directory
            replayed = [RestoreRun(run_id, folder, with_optimizer=True), *replayed]
        return History(next_seq_id, tuple(replayed), spent)

    async def _command(self, operation: Operation) -> Planned:
        if operation.directory is not None and not self._catalog.store.is_here(operation.directory):
            await asyncio.to_thread(self._catalog.store.fetch, operation.directory)
        _, command = await aside(PLANNING, _again, self._catalog, operation)
        return command

    def _read(self, connection: Connection, run_id: str) -> tuple[RunSnapshot | None, list[Operation]]:
        snapshot = repository.find(connection, RunSnapshot, run_id=run_id)
        finished = journal.finished(connection, run_id, snapshot.seq_id if snapshot else -1)
        return snapshot, [recalled(connection, self._catalog, operation) for operation in finished]

    def snapshot_folder(self, run_id: str, seq_id: int) -> Path:
        """See `mint.dispatch.snapshots.SnapshotStore`."""
        return snapshots_of(self._snapshot_dir, run_id) / str(seq_id)

    async def commit_snapshot(self, run_id: str, seq_id: int, folder: Path, size_bytes: int) -> None:
        """See `mint.dispatch.snapshots.SnapshotStore`."""
        directory = str(folder.relative_to(self._snapshot_dir))

        def write(connection: Connection) -> RunSnapshot | None:
            before = repository.put_snapshot(connection, RunSnapshot(run_id, seq_id, directory, size_bytes, time()))
            journal.drop_payloads(connection, run_id, seq_id)
            return before

        before = await self._database.transaction(write)
        # the last one stays for one more round: a database that has lost its power may remember that one
        kept = {folder.name} | ({Path(before.directory).name} if before else set())
        await asyncio.to_thread(_remove_others, folder.parent, kept)


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            rmtree(path, ignore_errors=True)
