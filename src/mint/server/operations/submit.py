"""An operation's way into the server: accepted and journaled; then it is dispatched."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_hex
from time import time
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from mint.engine.core import Planned
from mint.errors import BadRequestError, BusyError, GoneError, MintError, PermissionDeniedError
from mint.observability.logs import bind
from mint.server import limits
from mint.server.operations import finishing
from mint.server.operations.dispatching import dispatch
from mint.server.operations.kind import Kind
from mint.server.operations.kinds import recalled
from mint.server.operations.planning import DECODING, aside, pool_for
from mint.server.services import Services
from mint.store import audit, journal, places, repository
from mint.store.keys import Key
from mint.store.schema import Operation, Run, Status
from mint.wire.numbering import numbering
from mint.wire.passes import JSON

R = TypeVar("R")


async def submit(
    services: Services, kind: Kind[R], body: bytes, content_type: str, caller: Key, retry_key: str | None = None
) -> Operation:
    """Accept a request: once this returns it is in the journal and will be carried out.

    Args:
        retry_key: what all tries of a request without a number have in common.

    Returns:
        The journaled operation; for a retry, the one that the first try made.

    Raises:
        MintError: the request is refused; its sequence number counts as spent, unless it may be sent again.
    """
    services.check_accepting()
    pool = pool_for(kind, services.catalog, body)
    number: tuple[str, int | None] | None = None
    try:
        request = await aside(pool, kind.parse, body, content_type)
        stream, seq_id = number = kind.stream(request)
        kept = kind.journaled(request, body)
        arrived = _pending(kind.name, (stream, seq_id or 0), caller.owner, kept, content_type)
        way_in = _WayIn(services, kind, request, arrived, caller, seq_id, retry_key, pool)
        return await _accept(way_in)
    except MintError as error:
        if kind.ordered and error.category == "user":
            number = number or await aside(pool, numbering, body)
            if number is not None and number[1] is not None:
                await _spend(services, _refused(kind.name, (number[0], number[1]), caller.owner, error))
        raise


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


@dataclass(frozen=True)
class _WayIn(Generic[R]):
    """A request on its way in, with what its transactions look up.

    Attributes:
        number: None takes the next place of its run.
        pool: what plans it; see `pool_for`.
    """

    services: Services
    kind: Kind[R]
    request: R
    arrived: Operation
    caller: Key
    number: int | None
    retry_key: str | None
    pool: Executor | None

    def look_up(self, connection: Connection, *, has_room: bool) -> Operation:
        """The operation with its place and facts, or the one that has its number already."""
        arrived, catalog = self.arrived, self.services.catalog
        first = self._first(connection)
        if first is not None:
            return first
        if not has_room:
            raise BusyError(self.services.config.max_waiting_samples)
        arrived = replace(arrived, seq_id=self._place(connection))
        facts = self.kind.resolve(connection, catalog, self.request, arrived.owner)
        catalog.model(facts["model"])
        limits.check(connection, self.caller, self._asked(arrived))
        return replace(arrived, facts=facts, directory=facts.get("directory") or facts.get("reference"))

    async def plan_aside(self, operation: Operation) -> Planned:
        """The command of an operation that has been looked up; its images are decoded if there is memory for them."""
        counted = self.pool is DECODING and not self._asked(operation).awaited

        def plan() -> Planned:
            if counted:  # here, where one is planned after the other
                self.services.catalog.pixels.check(operation.owner)
            return self.kind.plan(self.services.catalog, operation, self.request)

        return await aside(self.pool, plan)

    def write(self, connection: Connection, operation: Operation) -> None:
        """The rows of an operation that is accepted."""
        journal.insert(connection, operation)
        if self.number is None:
            # before its transaction ends, so that none that comes later passes it over
            self.services.displaced.add(operation.stream)
            places.take(connection, operation.stream, operation.seq_id, operation.request_id, self.retry_key)
        self.kind.record(connection, operation, self.request)
        if self._asked(operation).makes_run:
            what = {"base_model": operation.facts["model"], "key_id": self.caller.key_id}
            audit.record(connection, "training_run_create", operation.owner, training_run_id=operation.stream, **what)

    def _first(self, connection: Connection) -> Operation | None:
        """What an earlier try of the same request has made."""
        if self.number is not None:
            return journal.known(connection, self.arrived.stream, self._place(connection))
        request_id = places.known(connection, self.arrived.stream, self.retry_key)
        first = journal.find(connection, request_id) if request_id is not None else None
        if first is None and request_id is not None:
            raise GoneError("names a request whose answer was forgotten", field="X-Idempotency-Key")
        return first

    def _place(self, connection: Connection) -> int:
        if self.number is None:
            return places.next_place(connection, self.arrived.stream)
        return _place(self.services, connection, self.arrived.stream, self.number)

    def _asked(self, operation: Operation) -> limits.Asked:
        ordered, dispatcher = self.kind.ordered, self.services.dispatcher
        return limits.Asked(
            makes_run=ordered and operation.seq_id == 0,
            saves=self.kind.saves,
            awaited=ordered and dispatcher.awaits(operation.stream, operation.seq_id),
            heard_since=self.services.heard_since,
        )


def _place(services: Services, connection: Connection, stream: str, number: int) -> int:
    return places.place_of(connection, stream, number) if stream in services.displaced else number


async def _accept(way_in: _WayIn[R]) -> Operation:
    """Journal and dispatch; what is large is planned between looking up and writing, the rest in one transaction."""
    services, kind, request, arrived = way_in.services, way_in.kind, way_in.request, way_in.arrived
    catalog = services.catalog

    def to_plan(connection: Connection) -> Operation:
        found = way_in.look_up(connection, has_room=has_room)
        return recalled(connection, catalog, found) if found.request_id == arrived.request_id else found

    def write(connection: Connection, command: Planned | None) -> tuple[Operation, Planned | None]:
        operation = way_in.look_up(connection, has_room=has_room)
        if operation.request_id != arrived.request_id:
            return operation, None
        command = command or kind.plan(catalog, recalled(connection, catalog, operation), request)
        way_in.write(connection, operation)
        return operation, command

    command: Planned | None = None
    with services.samples.arriving(arrived.owner) if kind.lines_up else nullcontext(True) as has_room:
        if way_in.pool is not None:
            found = await services.database.transaction(to_plan)
            if found.request_id == arrived.request_id:
                command = await way_in.plan_aside(found)
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

    def write(connection: Connection) -> int | None:
        run = repository.find(connection, Run, run_id=refused.stream)
        if run is None or run.owner != refused.owner:
            return None
        place = _place(services, connection, refused.stream, refused.seq_id)
        placed = replace(refused, seq_id=place)
        # a retry may be the first to be told that the number was spent
        return place if journal.append(connection, placed).status == Status.FAILED else None

    place = await services.database.transaction(write)
    if place is not None:
        services.dispatcher.skip(refused.stream, place)
