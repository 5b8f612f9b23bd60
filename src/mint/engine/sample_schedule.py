"""Which tokens of which continuations a step computes, and who has which blocks.

Continuations run in the order in which they were admitted, first come, first served. When memory runs out, the youngest
gives its blocks back and waits at the head of the queue to be computed again, which the blocks that are still
remembered make cheap. So the oldest always goes on, and each is the oldest at some time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from mint.config import EngineConfig
from mint.engine.blocks import BlockPool
from mint.engine.continuations import Continuation, Request
from mint.engine.paged_attention import Chunk


class Work(NamedTuple):
    """Tokens of a continuation that a step computes."""

    continuation: Continuation
    chunk: Chunk


class Fork(NamedTuple):
    """Siblings that begin from a continuation; block `source` is to be copied to `targets`, of which there may be
    none."""

    siblings: list[Continuation]
    source: int
    targets: list[int]


class SampleSchedule:
    """All continuations in progress, in blocks of `block_size` tokens."""

    def __init__(self, config: EngineConfig, num_blocks: int, block_size: int) -> None:
        self._config = config
        self._size = block_size
        # a piece of a prompt is at least a block
        self._batch_tokens = max(config.max_batch_tokens, block_size)
        self._prefill_tokens = max(config.max_prefill_tokens, block_size)
        self.pool = BlockPool(num_blocks)
        self._waiting: deque[Continuation] = deque()
        self._running: list[Continuation] = []
        self._fresh: list[int] = []
        self._suspects: deque[Request] = deque()

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._waiting or self._running)

    def add(self, continuation: Continuation) -> None:
        """Queue the first continuation of a request."""
        self._waiting.append(continuation)

    def drop(self, request: Request) -> None:
        """Let go of a request: its blocks are free at once."""
        self._waiting = deque(c for c in self._waiting if c.request is not request)
        self._release([c for c in self._running if c.request is request])
        if request in self._suspects:
            self._suspects.remove(request)

    def find(self, number: int) -> Request | None:
        """The request of that number, if it is in progress."""
        both = (c.request for c in (*self._running, *self._waiting))
        return next((request for request in both if request.number == number), None)

    def take_fresh(self) -> list[int]:
        """Blocks that were given since the last call, and hold whatever their last holder left there."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def suspect(self, requests: Iterable[Request]) -> None:
        """A step failed, and one of these is at fault: the next steps are each for one of them alone."""
        # what has ended in that step, before it failed, is not at fault
        self._suspects.extend(r for r in requests if not r.is_settled and r not in self._suspects)

    # --- before a step --------------------------------------------------------------------------------------

    def next_work(self) -> list[Work]:
        """What to compute: of the running continuations, then of those that can be admitted, in order of the batch."""
        if self._suspects:
            return self._work_of_suspect(self._suspects.popleft())
        is_decoding = any(c.num_tokens - c.computed == 1 for c in self._running)
        budget = self._prefill_tokens if is_decoding else self._batch_tokens
        work: list[Work] = []
        for place, continuation in enumerate(list(self._running)):
            if place >= len(self._running):
                break  # it had to give its blocks to an older one
            stop = self._stop_of_chunk(continuation, continuation.computed, budget)
            if stop is not None and self._make_room(continuation, stop):
                chunk = continuation.chunk(continuation.computed, stop)
                budget -= 0 if chunk.is_single else stop - chunk.start
                work.append(Work(continuation, chunk))
        work += self._admit(budget)
        return sorted(work, key=_batch_order)

    def _stop_of_chunk(self, continuation: Continuation, start: int, budget: int) -> int | None:
        """How far it is computed from `start` on in this step, with `budget` tokens left; None for not at all.

        One token is always allowed; pieces of a prompt end with a block. A whole prompt is not cut: it takes more than
        is left, if anything is.
        """
        command = continuation.request.command
        if command.whole and start < len(command.prompt):
            return continuation.num_tokens if budget > 0 else None
        if continuation.num_tokens - start <= max(1, budget):
            return continuation.num_tokens
        stop = (start + budget) // self._size * self._size
        return stop if stop > start else None

    def _make_room(self, continuation: Continuation, stop: int) -> bool:
        """Give it the blocks it needs up to `stop`, if need be those of the youngest; False if that is it."""
        missing = self._num_blocks(stop) - len(continuation.blocks)
        while missing > self.pool.num_free:
            youngest = self._running[-1]
            self._send_back(youngest)
            if youngest is continuation:
                return False
        self._give_blocks(continuation, missing)
        return True

    def _admit(self, budget: int) -> Iterator[Work]:
        """Take from the head of the queue as long as tokens, places and blocks allow."""
        under_way = self._keys_under_way() if self._waiting else set()
        for continuation in list(self._waiting):
            if len(self._running) >= self._config.max_decode_batch:
                return
            keys = self._useful_keys(continuation)
            known = self.pool.find(keys)
            if len(known) < len(keys) and keys[len(known)] in under_way:
                continue  # another is computing what this one begins with: it will be found
            start = len(known) * self._size
            stop = self._stop_of_chunk(continuation, start, budget)
            if stop is None or not self._has_room(continuation, known):
                return
            self._waiting.remove(continuation)
            self._running.append(continuation)
            self.pool.hold(known)
            continuation.blocks, continuation.computed = known, start
            self._give_blocks(continuation, self._num_blocks(stop) - len(known))
            continuation.request.note_cached(start)
            under_way |= self._keys_to_compute(continuation)
            budget -= stop - start
            yield Work(continuation, continuation.chunk(start, stop))

    def _work_of_suspect(self, suspect: Request) -> list[Work]:
        """A request from its beginning, while nothing else runs. Where that goes well, it is like any other."""
        while self._running:
            self._send_back(self._running[-1])
        others = deque(c for c in self._waiting if c.request is not suspect)
        self._waiting = deque(c for c in self._waiting if c.request is suspect)
        work = sorted(self._admit(self._batch_tokens), key=_batch_order)
        self._waiting += others
        return work

    def _has_room(self, continuation: Continuation, known: Sequence[int]) -> bool:
        """Whether it could be computed to its end and draw a token, while each that runs takes another block.

        Otherwise it would soon be the youngest that has to give its blocks back. Alone it can always run.
        """
        needed = self._num_blocks(continuation.num_tokens + 1) - len(known)
        free = self.pool.num_free - self.pool.num_unheld(known)
        return needed <= free - len(self._running) or not self._running

    def _useful_keys(self, continuation: Continuation) -> Sequence[bytes]:
        """Of the blocks it need not compute if they are known. Its last token, and what is asked about, it must."""
        scores = continuation.request.scores
        usable = continuation.num_tokens - 1 if scores is None else scores.first
        return continuation.keys(usable // self._size, self._size)

    def _keys_under_way(self) -> set[bytes]:
        prefilling = (c for c in self._running if c.num_tokens - c.computed > 1)
        return set().union(*map(self._keys_to_compute, prefilling))

    def _keys_to_compute(self, continuation: Continuation) -> set[bytes]:
        full = continuation.num_tokens // self._size
        return set(islice(continuation.keys(full, self._size), continuation.computed // self._size, None))

    # --- after a step ---------------------------------------------------------------------------------------

    def computed(self, work: Work) -> None:
        """A chunk is computed: what it fills can be found from now on."""
        continuation, chunk = work
        continuation.computed = chunk.stop
        first, full = chunk.start // self._size, chunk.stop // self._size
        keys = continuation.keys(full, self._size)
        for place in range(first, full):
            self.pool.remember(continuation.blocks[place], keys[place])

    def fork(self, leader: Continuation) -> Fork:
        """Begin the siblings of a continuation whose prompt is computed; for those without a place, one waits."""
        full, partial = divmod(leader.computed, self._size)
        places = self._config.max_decode_batch - len(self._running)
        # as in `_has_room`: what would have to go at once need not begin
        room = max(0, self.pool.num_free - len(self._running)) // 2
        number = min(leader.siblings, places, room)
        first = leader.index + 1
        shared, siblings, targets = leader.blocks[:full], [], []
        for index in range(first, first + number):
            self.pool.hold(shared)
            own = self.pool.take(1 if partial else 0)
            targets += own
            siblings.append(leader.sibling(index, shared + own))
        if number < leader.siblings:
            rest = leader.siblings - number - 1
            # behind whoever waits: a request of a thousand samples is no reason for others to wait for all of them
            self._waiting.append(Continuation(leader.request, first + number, rest))
        leader.siblings = 0
        self._running += siblings
        return Fork(siblings, leader.blocks[-1], targets)

    def settle(self) -> list[Request]:
        """Let go of what has ended; returns the requests of which nothing is left."""
        ended = [c for c in self._running if c.is_ended]
        self._release(ended)
        settled = {c.request.number: c.request for c in ended if c.request.is_settled}
        for request in settled.values():
            if request.error is not None:
                self.drop(request)
        return list(settled.values())

    # --- helpers --------------------------------------------------------------------------------------------

    def _release(self, continuations: Sequence[Continuation]) -> None:
        """They run no longer."""
        for continuation in continuations:
            self._running.remove(continuation)
            self.pool.release(continuation.blocks)

    def _send_back(self, continuation: Continuation) -> None:
        """It gives its blocks back and waits, first in line, to be computed again."""
        self._release([continuation])
        continuation.blocks, continuation.computed = [], 0
        self._waiting.appendleft(continuation)

    def _num_blocks(self, tokens: int) -> int:
        return -(-tokens // self._size)

    def _give_blocks(self, continuation: Continuation, number: int) -> None:
        blocks = self.pool.take(max(0, number))
        continuation.blocks += blocks
        self._fresh += blocks


def _batch_order(work: Work) -> tuple[object, ...]:
    """Single tokens before pieces, those of a revision together, in that those of a common beginning.

    By the revision's key, as blocks are: one that was loaded again while samples of it ran is two adapters.
    """
    revision = work.continuation.request.command.revision
    return not work.chunk.is_single, revision is not None, revision.key if revision else "", work.chunk.blocks
