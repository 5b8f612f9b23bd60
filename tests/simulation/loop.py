"""An event loop whose clock moves only when nothing else can happen, and whose threads are turns of the loop."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from random import Random
from typing import Any

EPOCH = 1.7e9
"""Unix seconds at which a schedule begins."""
TICK = 1e-6


@dataclass
class Clock:
    """Seconds since the schedule began; goes on over the processes of a schedule."""

    now: float = 0.0

    def unix(self) -> float:
        return EPOCH + self.now

    def monotonic(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    """Waits by moving the clock: nothing comes from outside."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self._clock.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """One process's loop. `point` is called before and after whatever would be a thread's work."""

    def __init__(self, clock: Clock, random: Random, point: Callable[[str], None]) -> None:
        super().__init__(_Selector(clock))
        self._clock = clock
        self._random = random
        self._point = point
        self._free: dict[int, float] = {}

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At a later turn; executors of ours have one thread each, the default one has any number."""
        answer = self.create_future()
        start = self._clock.now + self._random.random() * 0.01
        if executor is not None:
            start = max(start, self._free.get(id(executor), 0.0) + TICK)
            self._free[id(executor)] = start
        self.call_at(start, self._execute, answer, func, args)
        return answer

    def _execute(self, answer: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if answer.cancelled():
            return
        self._point("work begins")
        try:
            result = func(*args)
        except Exception as error:
            self._later(answer, answer.set_exception, error)
        else:
            self._later(answer, answer.set_result, result)

    def _later(self, answer: asyncio.Future[Any], settle: Callable[[Any], None], value: Any) -> None:
        """What a thread has done stays done, also when nobody waits for it any more."""
        delay = self._random.random() * 0.005 if self._random.random() < 0.3 else 0.0
        self.call_later(delay, lambda: None if answer.done() else settle(value))
