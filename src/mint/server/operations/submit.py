"""An operation's way through the server: journaled, dispatched, finished; and again after a restart."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from time import time
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from mint.dispatch.sample_queue import SampleTicket
from mint.dispatch.streams import History, Ticket
from mint.engine.core import Command, ForwardBackward, RestoreRun, Result, Sample
from mint.errors import BadRequestError, BusyError, MintError, PermissionDeniedError
from mint.observability.logs import begin, bind
from mint.server import limits
from mint.server.accounting import accounted, measured
from mint.server.catalog import Catalog
from mint.server.operations.distillation import ReverseKLPass
from mint.server.operations.kind import Completion, Kind
from mint.server.operations.sampling import AsyncSample
from mint.server.operations.train_step import TrainStepKind
from mint.server.operations.training import CreateModel, OptimizerStep, Pass
from mint.server.operations.weights import LoadWeights, SaveForSampler, SaveWeights, discard_staged
from mint.server.services import Services
from mint.store import audit, journal, repository
from mint.store.database import Database
from mint.store.keys import Key
from mint.store.schema import Operation, Run, RunSnapshot, Status
from mint.store.usage import TOKENS
from mint.wire.numbering import numbering
from mint.wire.passes import JSON

logger = logging.getLogger(__name__)

R = TypeVar("R")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between tries to write a result while the database refuses."""

KINDS: dict[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        CreateModel(),
        Pass(),
        OptimizerStep(),
        TrainStepKind(),
        ReverseKLPass(),
        SaveWeights(),
        SaveForSampler(),
        LoadWeights(),
        AsyncSample(),
    )
}


async def submit(services: Services, kind: Kind[R], body: bytes, content_type: str, caller: Key) -> Operation:
    """Accept a request: once this returns it is in the journal and will be carried out.

    Returns:
        The journaled operation; for a retry, the one that the first try made.

    Raises:
        MintError: the request is refused; its sequence number counts as spent, unless it may be sent again.
    """
    services.check_accepting()
    try:
        return await _accept(services, kind, body, content_type, caller)
    except MintError as error:
        if kind.ordered and error.category == "user":
            run_id, seq_id = numbering(body, content_type)
            await _spend(services, _refused(kind.name, run_id, seq_id, caller.owner, error))
        raise


async def _accept(services: Services, kind: Kind[R], body: bytes, content_type: str, caller: Key) -> Operation:
    request = kind.parse(body, content_type)
    stream, seq_id = kind.stream(request)
    awaited = kind.ordered and services.dispatcher.awaits(stream, seq_id)

    def write(connection: Connection) -> tuple[Operation, Command | None]:
        first = journal.known(connection, stream, seq_id)
        if first is not None:
            return first, None
        if not has_room:
            raise BusyError(services.config.max_waiting_samples)
        facts = kind.resolve(connection, services.catalog, request, caller.owner)
        services.catalog.model(facts["model"])
        makes_run = kind.ordered and seq_id == 0
        limits.check(
            connection,
            caller,
            makes_run=makes_run,
            stores=kind.stores,
            awaited=awaited,
            heard_since=services.heard_since,
        )
        operation = Operation(
            request_id=f"req-{token_hex(12)}",
            stream=stream,
            seq_id=seq_id,
            owner=caller.owner,
            kind=kind.name,
            status=Status.PENDING,
            payload_type=content_type,
            payload=body,
            facts=facts,
            created_at=time(),
        )
        command = kind.plan(services.catalog, operation, request)
        journal.insert(connection, operation)
        kind.record(connection, operation, request)
        if makes_run:
            what = {"training_run_id": stream, "base_model": facts["model"], "key_id": caller.key_id}
            audit.record(connection, "training_run_create", caller.owner, **what)
        return operation, command

    with nullcontext(True) if kind.ordered else services.samples.arriving(caller.owner) as has_room:
        operation, command = await services.database.transaction(write)
        bind(request_id=operation.request_id, run_id=operation.stream)
        if command is None:
            return _retry_of(operation, kind, caller.owner)
        _dispatch(services, kind, operation, request, command)
    return operation


def _retry_of(first: Operation, kind: Kind[Any], owner: str) -> Operation:
    if first.owner != owner:
        raise PermissionDeniedError(f"{first.stream} belongs to another API key")
    if first.kind != kind.name:
        raise BadRequestError(
            f"{first.seq_id} was used before, for {first.kind}; a number names one operation", field="seq_id"
        )
    return first


def _refused(kind: str, run_id: str, seq_id: int, owner: str, error: MintError) -> Operation:
    now = time()
    return Operation(
        request_id=f"req-{token_hex(12)}",
        stream=run_id,
        seq_id=seq_id,
        owner=owner,
        kind=kind,
        status=Status.FAILED,
        payload_type="",
        payload=b"",
        facts={},
        created_at=now,
        result_type=JSON,
        result=_failure(error),
        finished_at=now,
    )


async def _spend(services: Services, refused: Operation) -> None:
    """A refused operation of a run has used up its number: the run goes on with the next."""
    if refused.seq_id < 1:
        return

    def write(connection: Connection) -> bool:
        run = repository.find(connection, Run, run_id=refused.stream)
        mine = run is not None and run.owner == refused.owner
        return mine and journal.append(connection, refused) is refused

    if await services.database.transaction(write):
        services.dispatcher.skip(refused.stream, refused.seq_id)


def _dispatch(services: Services, kind: Kind[R], operation: Operation, request: R, command: Command) -> None:
    async def finish(outcome: Result | MintError) -> None:
        begin(request_id=operation.request_id, run_id=operation.stream, owner=operation.owner)
        await _finish(services, kind, operation, request, command, outcome)

    services.results.expect(operation)
    what = operation.request_id, operation.seq_id, operation.facts["model"]
    if isinstance(command, Sample):
        services.samples.add(SampleTicket(*what, command, finish, operation.owner, operation.session_id))
    else:
        services.dispatcher.submit(operation.stream, Ticket(*what, command, finish))


async def _finish(
    services: Services,
    kind: Kind[R],
    operation: Operation,
    request: R,
    command: Command,
    outcome: Result | MintError,
) -> None:
    """Write the result down, then wake whoever waits for it."""
    try:
        if isinstance(outcome, MintError):
            raise outcome
        completion = _complete(services, kind, operation, request, outcome)
        used = measured(command, outcome)
        await _write(services, operation, Status.DONE, accounted(operation, completion, used))
        for use in used.keys() & TOKENS:
            services.metrics.tokens(use, used[use])
    except MintError as error:
        await fail(services, operation, error)


async def fail(services: Services, operation: Operation, error: MintError) -> None:
    """Write down that an operation has failed, and how."""
    await _write(services, operation, Status.FAILED, Completion(_failure(error)))


def _complete(services: Services, kind: Kind[R], operation: Operation, request: R, result: Result) -> Completion:
    try:
        return kind.finish(services.catalog, operation, request, result)
    except OSError as error:
        logger.exception("operation %s could not be finished", operation.request_id)
        raise MintError(f"the files could not be put in place: {error.strerror}") from error


async def _write(services: Services, operation: Operation, status: Status, completion: Completion) -> None:
    """Write a result, however long that takes: the worker has carried the operation out, so it must not be lost.

    Raises:
        MintError: the rows that go with the result cannot be; it is not written.
    """

    def write(connection: Connection) -> None:
        completion.effect(connection)
        journal.finish(connection, operation.request_id, status, completion.media_type, completion.body)

    pause = FIRST_PAUSE
    while True:
        try:
            await services.database.transaction(write)
        except OperationalError:
            logger.exception("the result of %s cannot be written; trying again", operation.request_id)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        except SQLAlchemyError as error:
            logger.exception("the result of %s does not fit the database", operation.request_id)
            raise MintError("the result could not be written; see the server's log") from error
        else:
            break
    finished = replace(operation, status=status, payload=b"", result_type=completion.media_type, result=completion.body)
    services.metrics.finished(operation.kind, status, time() - operation.created_at)
    services.results.put(finished)


def _failure(error: MintError) -> bytes:
    """A failed future, as the SDK reads it."""
    return json.dumps({"error": str(error), "category": error.category}).encode()


# --- after a restart ----------------------------------------------------------------------------------------


async def resume(services: Services) -> int:
    """Queue again what the last process of this server left unfinished; returns how many operations.

    Those on a base model that is not served now stay in the journal for a process that serves it.
    """
    discard_staged(services.catalog)
    unfinished = await services.database.transaction(journal.pending)
    served = [operation for operation in unfinished if services.fleet.model(operation.facts["model"]) is not None]
    if len(served) < len(unfinished):
        logger.warning("%d unfinished operations wait for models that are not served", len(unfinished) - len(served))
    for operation in served:
        await _take_up(services, operation)
    return len(served)


async def _take_up(services: Services, operation: Operation) -> None:
    kind = KINDS[operation.kind]
    try:
        request = kind.parse(operation.payload, operation.payload_type)
        command = kind.plan(services.catalog, operation, request)
    except MintError as error:
        await fail(services, operation, error)
        services.dispatcher.skip(operation.stream, operation.seq_id)
    else:
        _dispatch(services, kind, operation, request, command)


class ServerJournal:
    """The journal as the dispatcher's recovery reads it, and the snapshots that recovery begins from."""

    def __init__(self, database: Database, catalog: Catalog, snapshot_dir: Path) -> None:
        self._database = database
        self._catalog = catalog
        self._snapshot_dir = snapshot_dir

    async def history(self, run_id: str) -> History:
        """See `mint.dispatch.streams.Journal`."""

        def read(connection: Connection) -> tuple[RunSnapshot | None, list[Operation]]:
            snapshot = repository.find(connection, RunSnapshot, run_id=run_id)
            return snapshot, journal.finished(connection, run_id, snapshot.seq_id if snapshot else -1)

        snapshot, finished = await self._database.transaction(read)
        done = {operation.seq_id for operation in finished}
        # what lies below an executed operation and is not here never arrived, and was waited for long enough
        before = snapshot.seq_id if snapshot else -1
        executed = max((o.seq_id for o in finished if o.status == Status.DONE), default=before)
        next_seq_id = next(number for number in count(executed + 1) if number not in done)
        spent = frozenset(number for number in done if number > next_seq_id)
        start = [RestoreRun(run_id, self._snapshot_dir / snapshot.directory, with_optimizer=True)] if snapshot else []
        return History(next_seq_id, (*start, *self._commands(finished)), spent)

    def snapshot_folder(self, run_id: str, seq_id: int) -> Path:
        """See `mint.dispatch.snapshots.SnapshotStore`."""
        return self._snapshot_dir / quote(run_id, safe="") / str(seq_id)

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

    def _commands(self, finished: Iterable[Operation]) -> Iterable[Command]:
        for operation in finished:
            kind = KINDS[operation.kind]
            if operation.status == Status.DONE and kind.replayed:
                request = kind.parse(operation.payload, operation.payload_type)
                command = kind.plan(self._catalog, operation, request)
                if not (isinstance(command, ForwardBackward) and command.forward_only):
                    yield command


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            rmtree(path, ignore_errors=True)
