"""Samples on their way to the workers: a window of them is there, the rest waits here for its turn.

A worker gets as many sequences as keep its batch full, and no more: who comes later need not wait behind all that
somebody else sent before. Owners are served in turn, and each owner's requests in the order in which they came.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex

from mint.dispatch.fleet import Fleet
from mint.dispatch.rate import Rate
from mint.dispatch.tickets import CLOSE_SECONDS, MAX_DEATHS, SUSPECT_DEATHS, Ticket, given_up
from mint.engine.core import OnProgress, Progress, Result, Sample, WorkerDiedError
from mint.errors import SERVER_FAULT, BusyError, MintError, UnavailableError

logger = logging.getLogger(__name__)

LARGEST_SHARE = 16
"""Sequences of a request that count, or a quarter of the window where that is more."""


@dataclass(frozen=True, eq=False)
class SampleTicket(Ticket):
    """A sample; `client` is what it ends with: a session, or its own request id. None: whoever waits ends it."""

    command: Sample
    owner: str
    client: str | None
    on_progress: OnProgress | None = None


@dataclass(frozen=True)
class Wait:
    """Of a request that waits: its place in line, from 1 on, among so many, and its seconds to go.

    `seconds` follows from how fast requests finish; None while none has.
    """

    position: int
    depth: int
    seconds: float | None


@dataclass
class _Lane:
    """The samples of one base model.

    `waiting` is by owner and request id, both in the order of their turns.
    """

    waiting: dict[str, dict[str, SampleTicket]] = field(default_factory=dict)
    sequences_out: int = 0
    rate: Rate = field(default_factory=Rate)

    def put(self, ticket: SampleTicket) -> None:
        self.waiting.setdefault(ticket.owner, {})[ticket.request_id] = ticket

    def remove(self, ticket: SampleTicket) -> None:
        mine = self.waiting[ticket.owner]
        del mine[ticket.request_id]
        if not mine:
            del self.waiting[ticket.owner]

    def take(self) -> SampleTicket:
        """The next in turn; its owner's other requests go behind everyone else's next."""
        owner, mine = next(iter(self.waiting.items()))
        ticket = next(iter(mine.values()))
        self.remove(ticket)
        if owner in self.waiting:
            self.waiting[owner] = self.waiting.pop(owner)
        return ticket

    def position(self, ticket: SampleTicket) -> int:
        """How many requests have been taken once this one is, if no other comes."""
        turn = list(self.waiting).index(ticket.owner)
        rounds = list(self.waiting[ticket.owner]).index(ticket.request_id)
        others = (
            min(len(theirs), rounds + (place < turn))
            for place, (owner, theirs) in enumerate(self.waiting.items())
            if owner != ticket.owner
        )
        return 1 + rounds + sum(others)


class SampleQueue:
    """The samples of one server process that are not finished.

    Args:
        window: a worker is sent requests while it has fewer sequences than this.
        max_waiting: requests of one owner that may wait.
    """

    def __init__(self, fleet: Fleet, window: int, max_waiting: int) -> None:
        self._fleet = fleet
        self._window = window
        self._max_waiting = max_waiting
        self._lanes: dict[str, _Lane] = {}
        self._waiting: dict[str, SampleTicket] = {}
        self._out: dict[str, tuple[SampleTicket, asyncio.Task[Result | MintError]]] = {}
        self._arriving: Counter[str] = Counter()
        self._finishing: set[asyncio.Task[None]] = set()
        self._closed = False

    @contextmanager
    def arriving(self, owner: str) -> Iterator[bool]:
        """While a request of this owner is being journaled; tells whether there is room for it."""
        waiting = sum(len(lane.waiting.get(owner, ())) for lane in self._lanes.values())
        has_room = waiting + self._arriving[owner] < self._max_waiting
        self._arriving[owner] += 1
        try:
            yield has_room
        finally:
            self._arriving[owner] -= 1

    def add(self, ticket: SampleTicket) -> None:
        """Take a request; it goes to the worker when it is its turn, and `finish` of the ticket is called once."""
        lane = self._lanes.setdefault(ticket.model, _Lane())
        self._waiting[ticket.request_id] = ticket
        lane.put(ticket)
        self._advance(lane)
        if len(lane.waiting) == 1 and list(lane.waiting[ticket.owner]) == [ticket.request_id]:
            lane.rate.start()

    async def run(self, model: str, command: Sample, owner: str, on_progress: OnProgress | None = None) -> Result:
        """Carry out a sample that is not journaled, for a caller who waits. To cancel this is to cancel the sample.

        When its worker dies it starts over on the next one, unless something of it has been told to `on_progress`.

        Raises:
            BusyError: too many of the owner's requests are waiting.
            UnavailableError: the worker died while the sample was being streamed.
            MintError: it failed, or workers die over it.
        """
        outcome: asyncio.Future[Result | MintError] = asyncio.get_running_loop().create_future()

        async def finish(result: Result | MintError) -> None:
            outcome.set_result(result)

        with self.arriving(owner) as has_room:
            if not has_room:
                raise BusyError(self._max_waiting)
            request_id = f"run-{token_hex(12)}"
            self.add(SampleTicket(request_id, 0, model, command, finish, owner, None, on_progress))
        try:
            result = await outcome
        finally:
            self._withdraw(request_id)
        if isinstance(result, MintError):
            raise result
        return result

    def wait(self, request_id: str) -> Wait | None:
        """How a request stands in line; None if it does not, because it is with the worker or has ended."""
        ticket = self._waiting.get(request_id)
        if ticket is None:
            return None
        lane = self._lanes[ticket.model]
        position = lane.position(ticket)
        rate = lane.rate.per_second
        return Wait(position, sum(map(len, lane.waiting.values())), position / rate if rate is not None else None)

    def waiting_by_model(self) -> Counter[str]:
        """How many requests stand in line, by base model."""
        return Counter(ticket.model for ticket in self._waiting.values())

    def out_by_model(self) -> Counter[str]:
        """How many requests are with a worker, by base model."""
        return Counter(ticket.model for ticket, _ in self._out.values())

    def clients(self) -> set[str]:
        """Those that have samples here."""
        return {ticket.client for ticket in self._tickets() if ticket.client is not None}

    def of_client(self, client: str) -> list[str]:
        """The request ids of a client's samples."""
        return [ticket.request_id for ticket in self._tickets() if ticket.client == client]

    def of_request(self, request_id: str) -> list[str]:
        """The names under which the samples of a request are here: its own, or those of its parts."""
        return [ticket.request_id for ticket in self._tickets() if ticket.request_id.partition("/")[0] == request_id]

    def revisions(self) -> set[str]:
        """The keys of the revisions that samples here read."""
        revisions = (ticket.command.revision for ticket in self._tickets())
        return {revision.key for revision in revisions if revision is not None}

    async def cancel(self, request_ids: Iterable[str], error: MintError) -> None:
        """Give up requests: they finish with `error`, and leave the worker at once. Those that have ended stay so."""
        tickets = [ticket for request_id in request_ids if (ticket := self._withdraw(request_id)) is not None]
        await asyncio.gather(*(ticket.finish(error) for ticket in tickets))

    async def close(self) -> None:
        """Stop. Results that have come are written; what is unfinished stays in the journal."""
        self._closed = True
        for request_id in list(self._out):
            self._withdraw(request_id)
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=CLOSE_SECONDS)  # a database may refuse to take them

    def _tickets(self) -> Iterator[SampleTicket]:
        yield from list(self._waiting.values())  # the sweeper asks from the database's thread
        yield from [ticket for ticket, _ in list(self._out.values())]

    def _withdraw(self, request_id: str) -> SampleTicket | None:
        if (ticket := self._waiting.pop(request_id, None)) is not None:
            self._lanes[ticket.model].remove(ticket)
            return ticket
        if request_id not in self._out:
            return None
        ticket, work = self._out.pop(request_id)
        work.cancel()
        return ticket

    def _advance(self, lane: _Lane) -> None:
        while lane.waiting and lane.sequences_out < self._window and not self._closed:
            ticket = lane.take()
            del self._waiting[ticket.request_id]
            lane.sequences_out += self._share(ticket)
            work = asyncio.create_task(self._outcome(ticket))
            self._out[ticket.request_id] = ticket, work
            work.add_done_callback(partial(self._ended, ticket))

    def _ended(self, ticket: SampleTicket, work: asyncio.Task[Result | MintError]) -> None:
        lane = self._lanes[ticket.model]
        lane.sequences_out -= self._share(ticket)
        # one that is not here any more was withdrawn, and is finished by whoever did that
        if self._out.pop(ticket.request_id, None) is not None:
            lane.rate.count()
            finishing = asyncio.ensure_future(ticket.finish(work.result()))
            self._finishing.add(finishing)
            finishing.add_done_callback(self._finishing.discard)
        self._advance(lane)

    def _share(self, ticket: SampleTicket) -> int:
        """Sequences that a request counts for: one alone never fills the window, so that others come in beside it."""
        return min(ticket.command.num_samples, max(LARGEST_SHARE, self._window // 4))

    async def _outcome(self, ticket: SampleTicket) -> Result | MintError:
        """What comes of a request, whatever becomes of workers meanwhile."""
        for deaths in range(MAX_DEATHS):
            async with self._fleet.suspects(ticket.model) if deaths >= SUSPECT_DEATHS else nullcontext():
                outcome = await self._try(ticket)
            if outcome is not None:
                return outcome
        return given_up()

    async def _try(self, ticket: SampleTicket) -> Result | MintError | None:
        """The outcome, or None if the worker died and it can start over."""
        worker = await self._fleet.worker(ticket.model)
        told = False

        def tell(progress: Progress) -> None:
            nonlocal told
            told = True
            if ticket.on_progress is not None:
                ticket.on_progress(progress)

        try:
            return await worker.execute(ticket.command, tell if ticket.on_progress is not None else None)
        except WorkerDiedError:
            return UnavailableError("the engine worker ended in the middle of this answer") if told else None
        except MintError as error:
            return error
        except Exception:
            logger.exception("sample %s failed on its way to the worker", ticket.request_id)
            return MintError(SERVER_FAULT)
