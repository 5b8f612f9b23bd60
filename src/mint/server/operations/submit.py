"""An operation's way through the server: journaled, dispatched, finished; and again after a restart."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from time import time
from typing import Any, ParamSpec, TypeVar
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
from mint.server.operations.training import CreateModel, ForwardPass, OptimizerStep, Pass
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
T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY = 1 << 20
"""Bytes; reading and checking that much JSON takes some ten milliseconds, in which nobody else is answered."""

PLANNING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planning")
"""Reads and plans large bodies, and what is replayed; one at a time, since a parsed body is many times its size."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between tries to write a result while the database refuses."""

KINDS: dict[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        CreateModel(),
        Pass(),
        ForwardPass(),
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
    large = len(body) > LARGE_BODY
    number: tuple[str, int] | None = None
    try:
        request = await _aside(large, kind.parse, body, content_type)
        number = kind.stream(request)
        arrived = _pending(kind.name, number, caller.owner, body, content_type)
        return await _accept(services, kind, request, arrived, caller, large=large)
    except MintError as error:
        if kind.ordered and error.category == "user":
            number = number or await _aside(large, numbering, body)
            if number is not None:
                await _spend(services, _refused(kind.name, number, caller.owner, error))
        raise


async def _aside(large: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What takes long is done in a thread, so that the event loop and the database go on for everyone else."""
    if not large:
        return function(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(PLANNING, partial(function, *args, **kwargs))


def _pending(kind: str, number: tuple[str, int], owner: str, body: bytes, content_type: str) -> Operation:
    """An operation that has just arrived, and whose facts are not known yet."""
    return Operation(
        request_id=f"req-{token_hex(12)}",
        stream=number[0],
        seq_id=number[1],
        owner=owner,
        kind=kind,
        status=Status.PENDING,
        payload_type=content_type,
        payload=body,
        facts={},
        created_at=time(),
    )


async def _accept(
    services: Services, kind: Kind[R], request: R, arrived: Operation, caller: Key, *, large: bool
) -> Operation:
    """Journal and dispatch; what is large is planned between looking up and writing, the rest in one transaction."""
    catalog = services.catalog
    asked = limits.Asked(
        makes_run=kind.ordered and arrived.seq_id == 0,
        stores=kind.stores,
        awaited=kind.ordered and services.dispatcher.awaits(arrived.stream, arrived.seq_id),
        heard_since=services.heard_since,
    )

    def look_up(connection: Connection) -> Operation:
        """`arrived` with its facts, or the operation that has its number already."""
        first = journal.known(connection, arrived.stream, arrived.seq_id)
        if first is not None:
            return first
        if not has_room:
            raise BusyError(services.config.max_waiting_samples)
        facts = kind.resolve(connection, catalog, request, arrived.owner)
        catalog.model(facts["model"])
        limits.check(connection, caller, asked)
        return replace(arrived, facts=facts)

    def to_plan(connection: Connection) -> Operation:
        found = look_up(connection)
        return _recalled(connection, catalog, found) if found.request_id == arrived.request_id else found

    def write(connection: Connection, command: Command | None) -> tuple[Operation, Command | None]:
        operation = look_up(connection)
        if operation.request_id != arrived.request_id:
            return operation, None
        command = command or kind.plan(catalog, _recalled(connection, catalog, operation), request)
        journal.insert(connection, operation)
        kind.record(connection, operation, request)
        if asked.makes_run:
            what = {"base_model": operation.facts["model"], "key_id": caller.key_id}
            audit.record(connection, "training_run_create", arrived.owner, training_run_id=arrived.stream, **what)
        return operation, command

    command: Command | None = None
    with nullcontext(True) if kind.ordered else services.samples.arriving(arrived.owner) as has_room:
        if large:
            found = await services.database.transaction(to_plan)
            if found.request_id == arrived.request_id:
                command = await _aside(large, kind.plan, catalog, found, request)
        operation, command = await services.database.transaction(partial(write, command=command))
        bind(request_id=operation.request_id, run_id=operation.stream)
        if command is None:
            return _retry_of(operation, kind, arrived.owner)
        _dispatch(services, kind, operation, request, command)
    return operation


def _recalled(connection: Connection, catalog: Catalog, operation: Operation) -> Operation:
    """The operation with what its kind needs for planning beside the facts of the journal."""
    recalled = KINDS[operation.kind].recall(connection, catalog, operation.facts)
    return replace(operation, facts={**operation.facts, **recalled}) if recalled else operation


def _retry_of(first: Operation, kind: Kind[Any], owner: str) -> Operation:
    if first.owner != owner:
        raise PermissionDeniedError(f"{first.stream} belongs to another API key")
    if first.kind != kind.name:
        raise BadRequestError(
            f"{first.seq_id} was used before, for {first.kind}; a number names one operation", field="seq_id"
        )
    return first


def _refused(kind: str, number: tuple[str, int], owner: str, error: MintError) -> Operation:
    arrived = _pending(kind, number, owner, b"", "")
    result = _failure(error)
    return replace(arrived, status=Status.FAILED, result_type=JSON, result=result, finished_at=arrived.created_at)


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
    kind, catalog = KINDS[operation.kind], services.catalog
    try:
        found = await services.database.transaction(lambda c: _recalled(c, catalog, operation))
        request, command = await _aside(len(operation.payload) > LARGE_BODY, _again, catalog, found)
    except MintError as error:
        await fail(services, operation, error)
        services.dispatcher.skip(operation.stream, operation.seq_id)
    else:
        _dispatch(services, kind, operation, request, command)


def _again(catalog: Catalog, operation: Operation) -> tuple[Any, Command]:
    """An operation of the journal as it was first read and planned."""
    kind = KINDS[operation.kind]
    request = kind.parse(operation.payload, operation.payload_type)
    return request, kind.plan(catalog, operation, request)


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
        commands = [(await _aside(True, _again, self._catalog, operation))[1] for operation in changing]
        replayed = [each for each in commands if not (isinstance(each, ForwardBackward) and each.forward_only)]
        if snapshot is not None:
            folder = self._snapshot_dir / snapshot.directory
            replayed = [RestoreRun(run_id, folder, with_optimizer=True), *replayed]
        return History(next_seq_id, tuple(replayed), spent)

    def _read(self, connection: Connection, run_id: str) -> tuple[RunSnapshot | None, list[Operation]]:
        snapshot = repository.find(connection, RunSnapshot, run_id=run_id)
        finished = journal.finished(connection, run_id, snapshot.seq_id if snapshot else -1)
        return snapshot, [_recalled(connection, self._catalog, operation) for operation in finished]

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


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            rmtree(path, ignore_errors=True)
