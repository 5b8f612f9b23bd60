"""When a run is written down, so that its recovery begins there and not at the run's first operation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from mint.engine.core import Command, OptimStep, Result, Saved, Snapshot, TrainStep, Worker, WorkerDiedError
from mint.errors import MintError

logger = logging.getLogger(__name__)


class SnapshotStore(Protocol):
    """Where snapshots are."""

    def snapshot_folder(self, run_id: str, seq_id: int) -> Path:
        """Where to write the state after operation `seq_id`."""
        ...

    async def commit_snapshot(self, run_id: str, seq_id: int, folder: Path, size_bytes: int) -> None:
        """The folder is written: recovery is to begin from it. What lies before it is needed no more."""
        ...


class Snapshots:
    """The snapshots of one run, at most one of them under way.

    Args:
        seconds: between the end of one and the beginning of the next; a recovery computes about so much again.
        written: waits until the results that have come are in the journal.
    """

    def __init__(
        self, run_id: str, store: SnapshotStore, seconds: float, written: Callable[[], Awaitable[None]]
    ) -> None:
        self._run_id = run_id
        self._store = store
        self._seconds = seconds
        self._written = written
        self._due = asyncio.get_running_loop().time() + seconds
        self._task: asyncio.Task[None] | None = None

    def follow(self, seq_id: int, command: Command, worker: Worker) -> None:
        """An operation was sent: send a snapshot behind it, if one is due and there are no gradients then."""
        is_due = self._task is None and asyncio.get_running_loop().time() >= self._due
        if is_due and isinstance(command, OptimStep | TrainStep):
            folder = self._store.snapshot_folder(self._run_id, seq_id)
            # sent now, so that no operation comes in between
            answer = worker.execute(Snapshot(self._run_id, folder))
            self._task = asyncio.create_task(self._commit(seq_id, folder, answer))

    def stop(self) -> None:
        """Commit nothing more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _commit(self, seq_id: int, folder: Path, answer: Awaitable[Result]) -> None:
        try:
            saved = await answer
            assert isinstance(saved, Saved)
            # an operation that is in the snapshot and has no result would be executed twice; where all answers came in
            # one turn of the loop, those before this one are told in the next
            await asyncio.sleep(0)
            await self._written()
            await self._store.commit_snapshot(self._run_id, seq_id, folder, saved.size_bytes)
        except WorkerDiedError:
            pass  # the next worker's will come
        except MintError as error:
            logger.info("no snapshot of run %s now: %s", self._run_id, error)
        except Exception:
            logger.exception("no snapshot of run %s: its recovery begins further back", self._run_id)
        self._due = asyncio.get_running_loop().time() + self._seconds
        self._task = None
