"""Samples of one HTTP request: under way as long as its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from starlette.types import Receive

from mint.dispatch.sample_queue import SampleQueue
from mint.engine.core import Progress, Result, Sample, Sampled, SampledSequence
from mint.errors import MintError
from mint.server.openai.errors import ClientGoneError

T = TypeVar("T")
Event = tuple[int, Progress | Sampled]
"""What has come, with the place of its command."""


async def draw(samples: SampleQueue, model: str, commands: Sequence[Sample], owner: str) -> AsyncGenerator[Event, None]:
    """Carry out all commands at once; of each, what it streams and then its result. Closing this cancels them.

    Raises:
        MintError: one has failed; the others are cancelled.
    """
    arrived: asyncio.Queue[tuple[int, Progress | Result | BaseException]] = asyncio.Queue()

    async def carry_out(place: int, command: Sample) -> None:
        try:
            result = await samples.run(model, command, owner, lambda progress: arrived.put_nowait((place, progress)))
        except Exception as error:  # raised to whoever reads the events
            arrived.put_nowait((place, error))
        else:
            arrived.put_nowait((place, result))

    tasks = [asyncio.create_task(carry_out(place, command)) for place, command in enumerate(commands)]
    missing = len(tasks)
    try:
        while missing:
            place, event = await arrived.get()
            if isinstance(event, BaseException):
                raise event
            if not isinstance(event, Progress | Sampled):
                raise MintError(f"the engine answered {type(event).__name__} where a sample was due")
            missing -= isinstance(event, Sampled)
            yield place, event
    finally:
        for task in tasks:
            task.cancel()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes. The request's body must have been read.

    Raises:
        ClientGoneError: it has gone.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("the client has gone")
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def prompts_alone(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events without what was drawn, where only the prompt was asked about."""
    nothing = SampledSequence(np.zeros(0, np.int32), np.zeros(0, np.float32), "length")
    async with aclosing(events):
        async for place, event in events:
            if isinstance(event, Sampled):
                yield place, replace(event, sequences=(nothing,) * len(event.sequences))


async def counted(
    events: AsyncGenerator[Event, None], commands: Sequence[Sample], count: Callable[[Sample, Sampled], Awaitable[None]]
) -> AsyncGenerator[Event, None]:
    """The same events; each result is counted before it is told."""
    async with aclosing(events):
        async for place, event in events:
            if isinstance(event, Sampled):
                await count(commands[place], event)
            yield place, event
