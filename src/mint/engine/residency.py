"""Which runs are on the device, and which wait on disk.

A run is four buffers of its adapter's size: weights, gradients and Adam's two moments. Beyond the configured number,
those of the runs that were used least recently are written to a file and freed, and read again when the run is next
used. Nothing here is durable: the files are the worker's own, and end with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from mint.engine.optimizer import TrainableAdapter
from mint.errors import NotFoundError


class Residents:
    """All runs of a worker.

    Args:
        limit: runs on the device at a time; those of one `acquire` always are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._present: OrderedDict[str, TrainableAdapter] = OrderedDict()
        self._parked: dict[str, Path] = {}
        self._folder: TemporaryDirectory[str] | None = None
        self._numbers = count()

    def put(self, run_id: str, run: TrainableAdapter) -> None:
        """Add a run, or put another in the place of the one of this id."""
        self.drop(run_id)
        self._present[run_id] = run
        self._make_room({run_id})

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
        """
        wanted = dict.fromkeys(run_ids)
        for run_id in wanted:
            if run_id not in self:
                raise NotFoundError(f"run {run_id} is not loaded")
        for run_id in wanted:
            if run_id in self._parked:
                path = self._parked.pop(run_id)
                self._present[run_id] = TrainableAdapter.unpark(path)
                path.unlink()
            self._present.move_to_end(run_id)
        self._make_room(wanted.keys())
        return {run_id: self._present[run_id] for run_id in wanted}

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._present or run_id in self._parked

    @property
    def num_present(self) -> int:
        """Runs on the device."""
        return len(self._present)

    def _make_room(self, keep: Iterable[str]) -> None:
        kept = set(keep)
        idle = [run_id for run_id in self._present if run_id not in kept]
        for run_id in idle[: max(0, len(self._present) - self._limit)]:
            if self._folder is None:
                self._folder = TemporaryDirectory(prefix="mint-parked-")
            path = Path(self._folder.name) / f"{next(self._numbers)}.pt"
            self._present[run_id].park(path)
            self._parked[run_id] = path
            del self._present[run_id]
