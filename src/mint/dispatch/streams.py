"""One run's operations: strictly in the order of their sequence numbers, and again after a worker has died.

Numbers may arrive out of order, since clients send the chunks of one call side by side, and some never
arrive, since a client may spend a number on a request that it then cannot send.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from mint.dispatch.fleet import Fleet
from mint.dispatch.snapshots import Snapshots, SnapshotStore
from mint.dispatch.tickets import MAX_DEATHS, SUSPECT_DEATHS, Ticket, given_up
from mint.engine.core import Command, Result, UnloadRun, Worker, WorkerDiedError
from mint.errors import BadRequestError, MintError

logger = logging.getLogger(__name__)

READ_PAUSES = (0.1, 1.0, 5.0)
"""Seconds between tries to read a journal that does not answer."""


@dataclass(frozen=True)
class History:
    """What a run has been through.

    Attributes:
        next_seq_id: the lowest number that is still open.
        commands: those that made the run's present state.
        spent: numbers above `next_seq_id` that were refused.
    """

    next_seq_id: int
    commands: tuple[Command, ...]
    spent: frozenset[int] = frozenset()


class Journal(SnapshotStore, Protocol):
    """What recovery reads."""

    async def history(self, run_id: str) -> History:
        """The run's finished operations, since its snapshot if it has one."""
        ...


class RunStream:
    """The operations of one run that are not finished.

    On a new stream, and whenever the worker has died, the run is first rebuilt on a worker by replaying its
    history; then unanswered operations are sent again, then new ones. `finish` of a ticket is called once.

    Of an operation that worker after worker dies over, it is not known whether it or another run's is at fault: so it
    is first tried by itself, and given up only if the worker dies then too.
    """

    def __init__(
        self, run_id: str, model: str, fleet: Fleet, journal: Journal, gap_seconds: float, snapshot_seconds: float
    ) -> None:
        self._run_id = run_id
        self._model = model
        self._fleet = fleet
        self._journal = journal
        self._gap_seconds = gap_seconds
        self._next: int | None = None
        self._waiting: dict[int, Ticket] = {}
        self._coming: set[int] = set()
        self._skipped: set[int] = set()
        self._sent: dict[int, Ticket] = {}
        self._deaths: dict[int, int] = {}
        self._finishing: set[asyncio.Task[None]] = set()
        self._last_result: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._stopped = False
        self._worker: Worker | None = None
        self._exposed = False
        self._broken: MintError | None = None
        self._gap_timer: asyncio.TimerHandle | None = None
        self._snapshots = Snapshots(run_id, journal, snapshot_seconds, self._written)
        self._restoring = asyncio.create_task(self._restore())

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or under way."""
        return not (self._waiting or self._coming or self._sent or self._finishing)

    @property
    def next_seq_id(self) -> int | None:
        """The number that is sent next; None while the run is being rebuilt for the first time."""
        return self._next

    @property
    def open_numbers(self) -> list[int]:
        """Of the operations that have no result, in order."""
        return sorted((*self._sent, *self._coming, *self._waiting))

    async def drain(self) -> None:
        """Wait until nothing is waiting, under way or being rebuilt."""
        while not self._stopped and not (self.idle and self._worker is not None):
            self._settled.clear()
            await self._settled.wait()

    def expect(self, seq_id: int) -> None:
        """An operation will be accepted, or skipped, however long that takes: it is no gap."""
        self._coming.add(seq_id)

    def accept(self, ticket: Ticket) -> None:
        """Take an operation; it is sent once all before it have been."""
        self._coming.discard(ticket.seq_id)
        self._waiting[ticket.seq_id] = ticket
        self._release()

    def skip(self, seq_id: int) -> None:
        """A number was spent on a request that was refused."""
        self._coming.discard(seq_id)
        if self._next is None or seq_id >= self._next:
            self._skipped.add(seq_id)
            self._release()
        self._settled.set()

    def worker_lost(self) -> None:
        """The worker has died: rebuild the run on the next one."""
        if self._exposed and self._sent:
            first = min(self._sent)
            self._deaths[first] = self._deaths.get(first, 0) + 1
        self._exposed = False
        self._broken = None
        self._worker = None
        self._stop_gap_timer()
        self._restoring.cancel()
        self._restoring = asyncio.create_task(self._restore())

    async def close(self) -> None:
        """Free the run on its worker, behind whatever is under way there."""
        await self.stop()
        if self._worker is not None:
            try:
                await self._worker.execute(UnloadRun(self._run_id))
            except (MintError, WorkerDiedError) as error:
                logger.info("run %s was not unloaded: %s", self._run_id, error)

    async def stop(self) -> None:
        """Do nothing more but write the results that have come."""
        self._stopped = True
        self._snapshots.stop()
        self._settled.set()
        self._restoring.cancel()
        self._stop_gap_timer()
        await self._written()

    # --- order ----------------------------------------------------------------------------------------------

    def _release(self) -> None:
        if self._broken is not None:
            self._fail_all(self._broken)
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
        if progress or not self._waiting:
            self._stop_gap_timer()
        if self._waiting and self._gap_timer is None:
            self._gap_timer = asyncio.get_running_loop().call_later(self._gap_seconds, self._give_up_gap)

    def _stop_gap_timer(self) -> None:
        if self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None

    def _give_up_gap(self) -> None:
        self._gap_timer = None
        if self._next is not None and self._waiting and self._next not in self._coming:
            logger.warning("run %s goes on without operation %d, which never arrived", self._run_id, self._next)
            self._next = min((*self._waiting, *self._coming))
        self._release()

    def _refuse_late(self, ticket: Ticket) -> None:
        error = BadRequestError(
            f"operation {ticket.seq_id} arrived more than {self._gap_seconds:g} s after a later one: too late",
            field="seq_id",
        )
        self._finish(ticket, error)

    # --- execution ------------------------------------------------------------------------------------------

    def _send(self, ticket: Ticket, worker: Worker) -> asyncio.Future[Result]:
        self._exposed = True
        self._sent[ticket.seq_id] = ticket
        answer = asyncio.ensure_future(worker.execute(ticket.command))
        self._snapshots.follow(ticket.seq_id, ticket.command, worker)
        answer.add_done_callback(lambda done: self._answered(ticket, done))
        return answer

    def _answered(self, ticket: Ticket, answer: asyncio.Future[Result]) -> None:
        error = answer.exception()
        if isinstance(error, WorkerDiedError):
            return  # nothing is known of it: `worker_lost` sends it again
        self._deaths.pop(ticket.seq_id, None)
        del self._sent[ticket.seq_id]
        if error is None:
            self._finish(ticket, answer.result())
        else:
            self._finish(ticket, error if isinstance(error, MintError) else MintError(str(error)))

    def _finish(self, ticket: Ticket, outcome: Result | MintError) -> None:
        task = asyncio.create_task(self._write(ticket, outcome, self._last_result))
        self._finishing.add(task)
        self._last_result = task
        task.add_done_callback(self._finished)

    @staticmethod
    async def _write(ticket: Ticket, outcome: Result | MintError, before: asyncio.Task[None] | None) -> None:
        """Results are written in the order of the operations.

        A history takes what has no result and lies below one that has for never sent.
        """
        if before is not None:
            await asyncio.wait([before])
        await ticket.finish(outcome)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if self._last_result is task:
            self._last_result = None
        self._settled.set()

    def _fail_all(self, error: MintError) -> None:
        for ticket in (*self._sent.values(), *self._waiting.values()):
            self._finish(ticket, error)
        self._sent.clear()
        self._waiting.clear()

    async def _written(self) -> None:
        """Wait until the results that have come are written. They are, also when this is cancelled."""
        if self._finishing:
            await asyncio.wait(self._finishing)

    # --- recovery -------------------------------------------------------------------------------------------

    async def _restore(self) -> None:
        """Rebuild the run on a worker and go on where the last one stopped."""
        worker = await self._fleet.worker(self._model)
        await self._written()  # results that arrived before the death belong to the history
        try:
            history = await self._history()
            await asyncio.gather(*(worker.execute(command) for command in history.commands))
        except WorkerDiedError:
            return  # `worker_lost` starts over
        except Exception as error:
            logger.exception("run %s could not be restored", self._run_id)
            self._broken = MintError(f"run {self._run_id} could not be restored: {error}")
        else:
            self._next = max(self._next or 0, history.next_seq_id)
            self._skipped |= {number for number in history.spent if number >= self._next}
            if not await self._try_suspects(worker):
                return
        self._worker = worker
        for ticket in sorted(self._sent.values(), key=lambda ticket: ticket.seq_id):
            if self._broken is None:
                self._send(ticket, worker)
        self._release()
        self._settled.set()

    async def _history(self) -> History:
        """The journal's word, asked for again where the database does not answer."""
        for pause in READ_PAUSES:
            try:
                return await self._journal.history(self._run_id)
            except MintError:
                raise
            except Exception:
                logger.exception("the journal of run %s cannot be read; trying again", self._run_id)
                await asyncio.sleep(pause)
        return await self._journal.history(self._run_id)

    async def _try_suspects(self, worker: Worker) -> bool:
        """Send what workers keep dying over by itself; False if this one died too."""
        while self._sent and (deaths := self._deaths.get(first := min(self._sent), 0)) >= SUSPECT_DEATHS:
            if deaths >= MAX_DEATHS:
                self._finish(self._sent.pop(first), given_up())
                continue
            async with self._fleet.suspects(self._model):
                await asyncio.wait([self._send(self._sent[first], worker)])
            if first in self._sent:
                return False
        return True
