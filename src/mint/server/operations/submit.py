"""An operation's way into the server: accepted, journaled, dispatched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from secrets import token_hex
from time import time
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection

from mint.dispatch.sample_batches import add_batch
from mint.dispatch.sample_queue import SampleTicket
from mint.dispatch.streams import Ticket
from mint.engine.core import Planned, Result, Sample, SampleBatch
from mint.errors import BadRequestError, BusyError, MintError, PermissionDeniedError
from mint.observability.logs import begin, bind
from mint.server import limits
from mint.server.operations import finishing
from mint.server.operations.kind import Kind
from mint.server.operations.kinds import recalled
from mint.server.services import Services
from mint.store import audit, journal, repository
from mint.store.keys import Key
from mint.store.schema import Operation, Run, Status
from mint.wire.numbering import numbering
from mint.wire.passes import JSON

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY = 1 << 20
"""Bytes; reading and checking that much JSON takes some ten milliseconds, in which nobody else is answered."""

IMAGE_BODY = 1 << 10
"""Where a body may have images, this is large: so few bytes can be many pixels."""

PLANNING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planning")
"""Reads and plans large bodies, and what is replayed; one at a time, since a parsed body is many times its size."""


async def submit(services: Services, kind: Kind[R], body: bytes, content_type: str, caller: Key) -> Operation:
    """Accept a request: once this returns it is in the journal and will be carried out.

    Returns:
        The journaled operation; for a retry, the one that the first try made.

    Raises:
        MintError: the request is refused; its sequence number counts as spent, unless it may be sent again.
    """
    services.check_accepting()
    large = len(body) > (IMAGE_BODY if kind.reads_images and services.catalog.sees else LARGE_BODY)
    number: tuple[str, int] | None = None
    try:
        request = await aside(large, kind.parse, body, content_type)
        number = kind.stream(request)
        arrived = _pending(kind.name, number, caller.owner, body, content_type)
        return await _accept(services, kind, request, arrived, caller, large=large)
    except MintError as error:
        if kind.ordered and error.category == "user":
            number = number or await aside(large, numbering, body)
            if number is not None:
                await _spend(services, _refused(kind.name, number, caller.owner, error))
        raise


async def aside(large: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
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
        saves=kind.saves,
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
        return replace(arrived, facts=facts, directory=facts.get("directory") or facts.get("reference"))

    def to_plan(connection: Connection) -> Operation:
        found = look_up(connection)
        return recalled(connection, catalog, found) if found.request_id == arrived.request_id else found

    def write(connection: Connection, command: Planned | None) -> tuple[Operation, Planned | None]:
        operation = look_up(connection)
        if operation.request_id != arrived.request_id:
            return operation, None
        command = command or kind.plan(catalog, recalled(connection, catalog, operation), request)
        journal.insert(connection, operation)
        kind.record(connection, operation, request)
        if asked.makes_run:
            what = {"base_model": operation.facts["model"], "key_id": caller.key_id}
            audit.record(connection, "training_run_create", arrived.owner, training_run_id=arrived.stream, **what)
        return operation, command

    command: Planned | None = None
    with nullcontext(True) if kind.ordered else services.samples.arriving(arrived.owner) as has_room:
        if large:
            found = await services.database.transaction(to_plan)
            if found.request_id == arrived.request_id:
                command = await aside(large, kind.plan, catalog, found, request)
        operation, command = await services.database.transaction(partial(write, command=command))
        bind(request_id=operation.request_id, run_id=operation.stream)
        if command is None:
            return _retry_of(operation, kind, arrived.owner)
        dispatch(services, kind, operation, request, command)
    return operation


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
    result = finishing.failure(error)
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


def dispatch(services: Services, kind: Kind[R], operation: Operation, request: R, command: Planned) -> None:
    """Send a journaled operation on its way to the worker; its result will be written down."""

    async def finish(outcome: Result | MintError) -> None:
        begin(request_id=operation.request_id, run_id=operation.stream, owner=operation.owner)
        await finishing.finish(services, kind, operation, request, command, outcome)

    services.results.expect(operation)
    what = operation.request_id, operation.seq_id, operation.facts["model"]
    if isinstance(command, Sample):
        services.presence.beat(operation.client)
        services.samples.add(SampleTicket(*what, command, finish, operation.owner, operation.client))
    elif isinstance(command, SampleBatch):
        services.presence.beat(operation.client)
        first = SampleTicket(*what, command.samples[0], finish, operation.owner, operation.client)
        add_batch(services.samples, first, command)
    else:
        services.dispatcher.submit(operation.stream, Ticket(*what, command, finish))
