"""Rules that can be broken on purpose, to see that schedules notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, TypeVar
from unittest.mock import patch

from sqlalchemy import Connection, RootTransaction

from mint.dispatch.snapshots import Snapshots
from mint.dispatch.streams import History, RunStream
from mint.server.operations.recovery import ServerJournal
from mint.store import journal, places
from tests.simulation.world import SimulatedDatabase

T = TypeVar("T")


class _EarlyAnswers:
    """Transactions that are answered before they are committed."""

    def __init__(self) -> None:
        self._open: tuple[object, RootTransaction] | None = None

    async def transaction(self, database: SimulatedDatabase, work: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(database._thread, self._run, database, work)
        loop.run_in_executor(database._thread, self._settle, database)
        return answer

    def _run(self, database: SimulatedDatabase, work: Callable[[Connection], T]) -> T:
        self._settle(database)
        begun = database._connection.begin()
        try:
            result = work(database._connection)
        except BaseException:
            begun.rollback()
            raise
        self._open = asyncio.get_running_loop(), begun
        return result

    def _settle(self, database: SimulatedDatabase) -> None:
        if self._open is None:
            return
        process, begun = self._open
        self._open = None
        if not begun.is_active:
            return
        if process is not asyncio.get_running_loop():
            begun.rollback()
            return
        try:
            assert database._world is not None
            database._world.point("commit")
        except BaseException:
            begun.rollback()
            raise
        begun.commit()

    def read(self, database: SimulatedDatabase, work: Callable[[Connection], T]) -> T:
        with suppress(RuntimeError):  # there may be no process now
            self._settle(database)
        with database._connection.begin():
            return work(database._connection)


@contextmanager
def acknowledging_before_the_commit() -> Iterator[None]:
    early = _EarlyAnswers()

    async def transaction(database: SimulatedDatabase, work: Callable[[Connection], T]) -> T:
        return await early.transaction(database, work)

    def read(database: SimulatedDatabase, work: Callable[[Connection], T]) -> T:
        return early.read(database, work)

    with patch.multiple(SimulatedDatabase, transaction=transaction, read=read):
        yield


def waiting_for_refused_numbers() -> AbstractContextManager[object]:
    return patch.object(RunStream, "skip", lambda _stream, _number: None)


@contextmanager
def forgetting_refused_numbers() -> Iterator[None]:
    real = ServerJournal.history

    async def history(self: ServerJournal, run_id: str) -> History:
        return replace(await real(self, run_id), spent=frozenset())

    with patch.object(ServerJournal, "history", history):
        yield


@contextmanager
def snapshots_before_their_results() -> Iterator[None]:
    real = Snapshots.__init__

    async def nothing() -> None: ...

    def init(self: Snapshots, *arguments: Any) -> None:
        real(self, *arguments[:-1], nothing)

    with patch.object(Snapshots, "__init__", init):
        yield


def results_in_any_order() -> AbstractContextManager[object]:
    async def write(ticket: Any, outcome: Any, _before: object) -> None:
        await ticket.finish(outcome)

    return patch.object(RunStream, "_write", staticmethod(write))


def bodies_dropped_too_far() -> AbstractContextManager[object]:
    real = journal.drop_payloads
    return patch.object(journal, "drop_payloads", lambda c, stream, up_to: real(c, stream, up_to + 1))


def recovery_beside_results_that_are_being_written() -> AbstractContextManager[object]:
    async def nothing(_stream: RunStream) -> None: ...

    return patch.object(RunStream, "_written", nothing)


def numbers_taken_for_places() -> AbstractContextManager[object]:
    return patch.object(places, "place_of", lambda _connection, _stream, number: number)


RULES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        acknowledging_before_the_commit,
        waiting_for_refused_numbers,
        forgetting_refused_numbers,
        snapshots_before_their_results,
        results_in_any_order,
        bodies_dropped_too_far,
        recovery_beside_results_that_are_being_written,
        numbers_taken_for_places,
    )
}


def broken(rule: str | None) -> AbstractContextManager[object]:
    return RULES[rule]() if rule is not None else nullcontext()
