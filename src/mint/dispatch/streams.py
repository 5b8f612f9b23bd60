"""One run's operations: strictly in the order of their sequence numbers, and again after a worker has died.

Numbers may arrive out of order, since clients send the chunks of one call side by side, and some never arrive,
since a client may spend a number on a request that it then cannot send.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from mint.dispatch.fleet import Fleet
from mint.engine.core import Command, Result, UnloadRun, Worker, WorkerDiedError
from mint.errors import BadRequestError, MintError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ticket:
    """A journaled operation on its way to a worker. `finish` writes its result down and wakes who waits for it."""

    request_id: str
    seq_id: int
    model: str
    command: Command
    finish: Callable[[Result | MintError], Awaitable[None]]


@dataclass(frozen=True)
class History:
    """What a run has been through: the commands that made its present state, and its lowest open number."""

    next_seq_id: int
    commands: tuple[Command, ...]


class Journal(Protocol):
    """What recovery reads."""

    async def history(self, run_id: str) -> History:
        """The run's finished operations."""
        ...


class RunStream:
    """The operations of one run that are not finished.

    On a new stream, and whenever the worker has died, the run is first rebuilt on a worker by replaying its
    history; then unanswered operations are sent again, then new ones. `finish` of a ticket is called once.
    """

    def __init__(self, run_id: str, model: str, fleet: Fleet, journal: Journal, gap_seconds: float) -> None:
        self._run_id = run_id
        self._model = model
        self._fleet = fleet
        self._journal = journal
        self._gap_seconds = gap_seconds
        self._next: int | None = None
        self._waiting: dict[int, Ticket] = {}
        self._skipped: set[int] = set()
        self._sent: dict[int, Ticket] = {}
        self._finishing: set[asyncio.Task[None]] = set()
        self._worker: Worker | None = None
        self._broken: MintError | None = None
        self._gap_timer: asyncio.TimerHandle | None = None
        self._restoring = asyncio.create_task(self._restore())

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting, under way or being rebuilt."""
        return not (self._waiting or self._sent or self._finishing) and self._restoring.done()

    def accept(self, ticket: Ticket) -> None:
        """Take an operation; it is sent once all before it have been."""
        self._waiting[ticket.seq_id] = ticket
        self._release()

    def skip(self, seq_id: int) -> None:
        """A number was spent on a request that was refused."""
        self._skipped.add(seq_id)
        self._release()

    def worker_lost(self) -> None:
        """The worker has died: rebuild the run on the next one."""
        self._worker = None
        self._restoring.cancel()
        self._restoring = asyncio.create_task(self._restore())

    async def close(self) -> None:
        """Free the run on its worker, behind whatever is under way there."""
        self._restoring.cancel()
        if self._gap_timer is not None:
            self._gap_timer.cancel()
        if self._worker is not None:
            try:
                await self._worker.execute(UnloadRun(self._run_id))
            except (MintError, WorkerDiedError) as error:
                logger.info("run %s was not unloaded: %s", self._run_id, error)

    # --- order ----------------------------------------------------------------------------------------------

    def _release(self) -> None:
        if self._worker is None or self._next is None:
            return
        before = self._next
        for late in [seq_id for seq_id in self._waiting if seq_id < self._next]:
            self._refuse_late(self._waiting.pop(late))
        while True:
            if self._next in self._skipped:
                self._skipped.discard(self._next)
            elif (ticket := self._waiting.pop(self._next, None)) is not None:
                self._send(ticket, self._worker)
            else:
                break
            self._next += 1
        self._watch_gap(progress=self._next > before)

    def _watch_gap(self, *, progress: bool) -> None:
        if self._gap_timer is not None and (progress or not self._waiting):
            self._gap_timer.cancel()
            self._gap_timer = None
        if self._waiting and self._gap_timer is None:
            self._gap_timer = asyncio.get_running_loop().call_later(self._gap_seconds, self._give_up_gap)

    def _give_up_gap(self) -> None:
        self._gap_timer = None
        if self._waiting and self._next is not None:
            logger.warning(
                "run %s goes on without operation %d, which never arrived", self._run_id, self._next
            )
            self._next = min(self._waiting)
            self._release()

    def _refuse_late(self, ticket: Ticket) -> None:
        error = BadRequestError(
            f"operation {ticket.seq_id} arrived more than {self._gap_seconds:g} s after a later one; the run has gone on",
            field="seq_id",
        )
        self._finish(ticket, error)

    # --- execution ------------------------------------------------------------------------------------------

    def _send(self, ticket: Ticket, worker: Worker) -> None:
        if self._broken is not None:
            self._sent.pop(ticket.seq_id, None)
            self._finish(ticket, self._broken)
            return
        self._sent[ticket.seq_id] = ticket
        answer = asyncio.ensure_future(worker.execute(ticket.command))
        answer.add_done_callback(lambda done: self._answered(ticket, done))

    def _answered(self, ticket: Ticket, answer: asyncio.Future[Result]) -> None:
        error = answer.exception()
        if isinstance(error, WorkerDiedError):
            return  # nothing is known of it: `worker_lost` sends it again
        del self._sent[ticket.seq_id]
        if error is None:
            self._finish(ticket, answer.result())
        else:
            self._finish(ticket, error if isinstance(error, MintError) else MintError(str(error)))

    def _finish(self, ticket: Ticket, outcome: Result | MintError) -> None:
        task = asyncio.ensure_future(ticket.finish(outcome))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    # --- recovery -------------------------------------------------------------------------------------------

    async def _restore(self) -> None:
        """Rebuild the run on a worker and go on where the last one stopped."""
        worker = await self._fleet.worker(self._model)
        # results that arrived before the death belong to the history: let them be written first
        await asyncio.gather(*self._finishing, return_exceptions=True)
        history = await self._journal.history(self._run_id)
        try:
            await asyncio.gather(*(worker.execute(command) for command in history.commands))
        except WorkerDiedError:
            return  # `worker_lost` starts over
        except MintError as error:
            self._broken = MintError(f"run {self._run_id} could not be restored: {error}")
            logger.exception("run %s could not be restored", self._run_id)
        self._worker = worker
        self._next = max(self._next or 0, history.next_seq_id)
        for ticket in sorted(self._sent.values(), key=lambda ticket: ticket.seq_id):
            self._send(ticket, worker)
        self._release()
