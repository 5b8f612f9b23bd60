"""Which runs are on the device, and which wait on disk.

A run is four buffers of its adapter's size: weights, gradients and Adam's two moments. Beyond the configured number,
those of the runs that were used least recently are written to a file and freed, and read again when the run is next
used. Nothing here is durable: the files are the worker's own, and what a worker that was killed left behind is removed
when the next one starts.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from mint.engine.failures import LostRunError
from mint.engine.optimizer import TrainableAdapter
from mint.errors import NotFoundError


class Residents:
    """All runs of a worker.

    Args:
        limit: runs on the device at a time; those of one `acquire` always are.
        folder: for the files of others, and for nothing else; None is one of the system's temporary folders.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._limit = limit
        self._present: OrderedDict[str, TrainableAdapter] = OrderedDict()
        self._parked: dict[str, Path] = {}
        self._folder = folder
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._numbers = count()

    def put(self, run_id: str, run: TrainableAdapter) -> None:
        """Add a run, or put another in the place of the one of this id.

        Raises:
            OSError: another run could not be written to disk to make room; nothing has changed.
        """
        self._make_room({run_id}, coming=run_id not in self._present)
        self.drop(run_id)
        self._present[run_id] = run

    def drop(self, run_id: str) -> None:
        """Forget a run."""
        self._present.pop(run_id, None)
        path = self._parked.pop(run_id, None)
        if path is not None:
            path.unlink()

    def acquire(self, run_ids: Iterable[str]) -> dict[str, TrainableAdapter]:
        """These runs, on the device until the next call.

        Raises:
            NotFoundError: there is no such run; nothing was moved.
            OSError: another run could not be written to disk to make room.
            LostRunError: one of them cannot be read back.
        """
        wanted = dict.fromkeys(run_ids)
        for run_id in wanted:
            if run_id not in self:
                raise NotFoundError(f"run {run_id} is not loaded")
        for run_id in wanted:
            if run_id in self._parked:
                self._make_room(wanted.keys(), coming=True)
                self._bring_back(run_id)
            self._present.move_to_end(run_id)
        self._make_room(wanted.keys(), coming=False)
        return {run_id: self._present[run_id] for run_id in wanted}

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._present or run_id in self._parked

    def _bring_back(self, run_id: str) -> None:
        path = self._parked[run_id]
        try:
            run = TrainableAdapter.unpark(path)
        except Exception as error:
            raise LostRunError(f"run {run_id} cannot be read back from {path}: {error}") from error
        self._present[run_id] = run
        del self._parked[run_id]
        path.unlink()

    def _make_room(self, keep: Iterable[str], *, coming: bool) -> None:
        """Write the least recently used to disk, as far as it takes for those present and one that is `coming`."""
        kept = set(keep)
        idle = [run_id for run_id in self._present if run_id not in kept]
        for run_id in idle[: max(0, len(self._present) + coming - self._limit)]:
            path = self._parking_lot() / f"{next(self._numbers)}.pt"
            self._present[run_id].park(path)
            self._parked[run_id] = path
            del self._present[run_id]

    def _parking_lot(self) -> Path:
        if self._folder is None:
            self._temporary = TemporaryDirectory(prefix="mint-parked-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder
