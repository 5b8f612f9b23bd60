"""Which batch is next.

Rules, in this order:

1. Commands of one run execute in the order they came. Passes up to the run's next barrier (any other command)
   may share a batch; passes of different runs always may, if they are of one kind.
2. Runs take turns: the run at the head of the line starts the batch, and goes to the end of the line.
3. Training and sampling get equal time while both have work; neither is charged for time in which the other
   was idle. What one is ahead by stays over a pause, so that samples which come one by one get their half too.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mint.engine.core import ForwardBackward, TrainingCommand

Side = Literal["training", "sampling"]


@dataclass(frozen=True)
class Passes:
    """Passes that run as one batch, each with the number its result goes back under."""

    members: tuple[tuple[int, ForwardBackward], ...]


@dataclass(frozen=True)
class Single:
    """One command that runs by itself."""

    number: int
    command: TrainingCommand


Work: TypeAlias = Passes | Single


class Scheduler:
    """Queues of training commands, one per run.

    Args:
        max_batch_tokens: a batch takes no further pass that would lead beyond this.
        max_batch_runs: nor one of a further run beyond this.
    """

    def __init__(self, max_batch_tokens: int, max_batch_runs: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_runs = max_batch_runs
        self._queues: OrderedDict[str, deque[tuple[int, TrainingCommand]]] = OrderedDict()
        self._seconds: dict[Side, float] = {"training": 0.0, "sampling": 0.0}
        self._contended = False

    def add(self, number: int, command: TrainingCommand) -> None:
        """Queue a command behind the others of its run."""
        self._queues.setdefault(command.run_id, deque()).append((number, command))

    @property
    def has_training(self) -> bool:
        """Whether a training command waits."""
        return bool(self._queues)

    def side(self, *, training: bool, sampling: bool) -> Side | None:
        """Whose turn it is, given who has work."""
        self._contended = training and sampling
        if not self._contended:
            return "training" if training else "sampling" if sampling else None
        return min(self._seconds, key=lambda side: self._seconds[side])

    def charge(self, side: Side, seconds: float) -> None:
        """Note time spent on the turn that `side` gave."""
        if self._contended:
            self._seconds[side] += seconds

    def next_training(self) -> Work:
        """Take the next batch off the queues, of which at least one is not empty."""
        run_id, queue = next(iter(self._queues.items()))
        number, command = queue[0]
        if not isinstance(command, ForwardBackward):
            self._take(run_id)
            self._end_turn(run_id)
            return Single(number, command)
        members = self._collect(command.forward_only)
        self._end_turn(run_id)
        return Passes(tuple(members))

    def _collect(self, forward_only: bool) -> list[tuple[int, ForwardBackward]]:
        """The leading passes of the runs, in line order, within the limits; the first always."""
        members: list[tuple[int, ForwardBackward]] = []
        tokens = 0
        for run_id in list(self._queues):
            if len({command.run_id for _, command in members}) == self._max_batch_runs:
                break
            while (queue := self._queues.get(run_id)) is not None:
                number, command = queue[0]
                if not isinstance(command, ForwardBackward) or command.forward_only != forward_only:
                    break
                tokens += command.num_tokens
                if members and tokens > self._max_batch_tokens:
                    return members
                members.append((number, command))
                self._take(run_id)
        return members

    def _take(self, run_id: str) -> None:
        queue = self._queues[run_id]
        queue.popleft()
        if not queue:
            del self._queues[run_id]

    def _end_turn(self, run_id: str) -> None:
        if run_id in self._queues:
            self._queues.move_to_end(run_id)
