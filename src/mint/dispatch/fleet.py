"""The workers: one per served base model, started again when it dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from mint.config import EngineConfig, ModelSource
from mint.dispatch.local_worker import LocalWorker
from mint.engine.core import ModelInfo, WorkerDiedError

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
"""Seconds between starts of a worker that keeps dying."""


class Fleet:
    """All workers, by the name of their base model.

    Attributes:
        on_death: called with the model's name when its worker has ended; another is being started.
    """

    def __init__(self, sources: Sequence[ModelSource], config: EngineConfig) -> None:
        self.on_death: Callable[[str], None] = lambda _model: None
        self._slots = {source.name: _Slot(source, config, self._died) for source in sources}

    async def start(self) -> None:
        """Start all workers and wait until their models are loaded.

        Raises:
            ModelLoadError: a model cannot be found or cannot be served.
            WorkerDiedError: a worker ended while loading.
        """
        await asyncio.gather(*(slot.start() for slot in self._slots.values()))

    @property
    def ready(self) -> bool:
        """Whether every model has a worker right now."""
        return all(slot.ready for slot in self._slots.values())

    def has_worker(self, name: str) -> bool:
        """Whether a model has a worker right now."""
        return self._slots[name].ready

    def models(self) -> list[ModelInfo]:
        """All models that have been loaded."""
        return [slot.info for slot in self._slots.values() if slot.info is not None]

    def model(self, name: str) -> ModelInfo | None:
        """A loaded model, or None if there is none of that name."""
        slot = self._slots.get(name)
        return slot.info if slot is not None else None

    async def worker(self, name: str) -> LocalWorker:
        """The model's worker; waits while it is being started again."""
        return await self._slots[name].get()

    def suspects(self, name: str) -> asyncio.Lock:
        """Held by whatever may be killing the model's workers, so that it is alone with others of its like."""
        return self._slots[name].suspects

    async def close(self) -> None:
        """Stop all workers."""
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))

    def _died(self, model: str) -> None:
        self.on_death(model)


class _Slot:
    """One model's place: its worker now, and the task that starts the next one."""

    def __init__(self, source: ModelSource, config: EngineConfig, on_death: Callable[[str], None]) -> None:
        self.worker: LocalWorker | None = None
        self.info: ModelInfo | None = None
        self.suspects = asyncio.Lock()
        self._source = source
        self._config = config
        self._on_death = on_death
        self._changed = asyncio.Condition()
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._put(await LocalWorker.start(self._source, self._config))
        self._supervisor = asyncio.create_task(self._supervise())

    @property
    def ready(self) -> bool:
        return self.worker is not None and self.worker.alive

    async def get(self) -> LocalWorker:
        async with self._changed:
            await self._changed.wait_for(lambda: self.ready)
            assert self.worker is not None
            return self.worker

    async def close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        if self.worker is not None:
            await self.worker.close()

    async def _put(self, worker: LocalWorker) -> None:
        async with self._changed:
            self.worker, self.info = worker, worker.info
            self._changed.notify_all()

    async def _supervise(self) -> None:
        while True:
            assert self.worker is not None
            await self.worker.died.wait()
            self.worker = None
            self._on_death(self._source.name)
            await self._put(await self._restart())

    async def _restart(self) -> LocalWorker:
        pause = 0.0
        while True:
            try:
                logger.warning("starting the worker for %s again", self._source.name)
                return await LocalWorker.start(self._source, self._config)
            except Exception as error:
                if not isinstance(error, WorkerDiedError):
                    logger.exception("the worker for %s does not start", self._source.name)
                pause = min(LONGEST_PAUSE, 2 * pause + 0.5)
                await asyncio.sleep(pause)
