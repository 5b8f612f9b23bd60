"""An engine worker as a child process, at the other end of a socket pair."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from mint.config import EngineConfig, ModelSource
from mint.engine import channel
from mint.engine.core import Cancel, Command, ModelInfo, OnProgress, Progress, Result, Sample, WorkerDiedError
from mint.errors import MintError

logger = logging.getLogger(__name__)

WORKER_ENVIRONMENT: Mapping[str, str] = {
    # glibc gives large blocks back to the system after each pass, then faults their pages in again: keep them
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    # a thread that waits by spinning takes the core from what it waits for, once others want the machine
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}

CLOSE_SECONDS = 5.0
"""That a worker may take over the step it is in when it is stopped."""


class LocalWorker:
    """A running worker process; see the `Worker` protocol.

    Attributes:
        died: set once the process has ended, for whatever reason.
    """

    def __init__(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, info: ModelInfo
    ) -> None:
        self.died = asyncio.Event()
        self._info = info
        self._process = process
        self._reader = reader
        self._writer = writer
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[Result]] = {}
        self._listeners: dict[int, OnProgress] = {}
        self._closing = False
        self._receiving = asyncio.create_task(self._receive())

    @classmethod
    async def start(cls, source: ModelSource, config: EngineConfig) -> LocalWorker:
        """Start a process and wait until its model is loaded.

        Raises:
            ModelLoadError: the model cannot be found or cannot be served.
            WorkerDiedError: the process ended without saying why.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mint.engine.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=worker_environment(),
                start_new_session=True,  # Ctrl-C is for the server, which decides when a worker ends
            )
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            writer.write(channel.encode((source, config)))
            hello = await _receive_message(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            code = await process.wait()
            raise WorkerDiedError(
                f"the worker for {source.name} ended with code {code} while it loaded the model"
            ) from None
        except BaseException:
            writer.close()
            process.kill()
            raise
        if isinstance(hello, MintError):
            writer.close()
            raise hello
        return cls(process, reader, writer, hello)

    @property
    def info(self) -> ModelInfo:
        """See `Worker`."""
        return self._info

    @property
    def alive(self) -> bool:
        """Whether commands still reach it. They may stop to before it has ended, and before that is known."""
        return not (self.died.is_set() or self._writer.is_closing())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def execute(self, command: Command, on_progress: OnProgress | None = None) -> asyncio.Future[Result]:
        """See `Worker`."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if not self.alive:
            answer.set_exception(WorkerDiedError("the worker has ended"))
            return answer
        number = next(self._numbers)
        self._answers[number] = answer
        if on_progress is not None:
            self._listeners[number] = on_progress
        if isinstance(command, Sample):
            answer.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        self._writer.write(channel.encode((number, command)))
        return answer

    def _cancel(self, number: int) -> None:
        """Nobody waits for the answer to this sample any more."""
        self._forget(number)
        if self.alive:
            self._writer.write(channel.encode((number, Cancel())))

    def _forget(self, number: int) -> asyncio.Future[Result] | None:
        self._listeners.pop(number, None)
        return self._answers.pop(number, None)

    async def close(self) -> None:
        """See `Worker`."""
        self._closing = True
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        await self._receiving

    async def _receive(self) -> None:
        """Hand out answers until the process ends."""
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    number, answer = await _receive_message(self._reader)
                    self._resolve(number, answer)
            self._writer.close()
            code = await self._process.wait()
            if not self._closing:
                logger.error("the worker for %s ended with code %s", self._info.name, code)
        finally:
            self._writer.close()
            self.died.set()
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(WorkerDiedError("the worker has ended"))
                    future.exception()  # whoever still waits sees it; nobody need
            self._answers.clear()

    def _resolve(self, number: int, answer: Result | Progress | MintError) -> None:
        if isinstance(answer, Progress):
            if (listener := self._listeners.get(number)) is not None:
                listener(answer)
            return
        future = self._forget(number)
        if future is None or future.cancelled():
            return  # cancelled while its answer was on the way
        if isinstance(answer, MintError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def worker_environment() -> dict[str, str]:
    """What a worker is started with: this process's environment, and ours where the user has not said otherwise."""
    spins = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    ours = {name: value for name, value in WORKER_ENVIRONMENT.items() if not (spins and name == "OMP_WAIT_POLICY")}
    level = logging.getLevelName(logger.getEffectiveLevel())
    return {**ours, **os.environ, "MINT_LOG_LEVEL": level}


async def _receive_message(reader: asyncio.StreamReader) -> Any:
    (size,) = channel.HEADER.unpack(await reader.readexactly(channel.HEADER.size))
    return channel.decode(await reader.readexactly(size))
