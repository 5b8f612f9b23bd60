"""What outlives the processes of a schedule: the clock, the disk, the database, and fate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from mint.store.database import Database
from mint.store.schema import deployment, metadata
from tests.simulation.loop import Clock

if TYPE_CHECKING:
    from mint.server.services import Services
    from tests.simulation.worker import SimulatedWorker

T = TypeVar("T")


TOGETHER = 0.3
"""How often one misfortune brings another: that two come together by chance is too seldom."""


class Killed(KeyboardInterrupt):
    """The server process ends here and now. Of all exceptions, event loops let this one through."""


class Violation(AssertionError):
    """What must never be, and the world in which it was."""

    def __init__(self, what: str, world: World | None = None) -> None:
        super().__init__(what)
        self.world = world


class World:
    """One schedule's."""

    def __init__(self, random: Random, database: SimulatedDatabase, folder: Path, *, traced: bool = False) -> None:
        self.random = random
        self.clock = Clock()
        self.folder = folder
        self.database = database
        self.server: Services | None = None
        self.worker: SimulatedWorker | None = None
        self.fuse: int | None = None
        self.strikes_left: dict[str, int] = {}
        self.log: list[str] = []
        self.faults: list[str] = []
        self.points = 0
        self._traced = traced
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        database.clear(self)

    def trace(self, what: str, *details: object) -> None:
        if self._traced:
            text = " ".join(map(str, (what, *details))).replace(str(self.folder), "…")
            self.log.append(f"{self.clock.now:9.4f}  {text}")

    def point(self, what: str) -> None:
        """Something is about to be seen from outside, or has just been: the server may end here."""
        self.points += 1
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                self.trace("server is killed:", what)
                raise Killed(what)

    def strikes(self, what: str, chance: float = 0.05) -> bool:
        """Whether a misfortune happens now; of each kind there are so many in a schedule."""
        if not self.strikes_left.get(what, 0) or self.random.random() >= chance:
            return False
        self.strikes_left[what] -= 1
        if self.fuse is not None and self.random.random() < TOGETHER:
            self.fuse = min(self.fuse, self.random.randrange(1, 15))
        if what == "locked" and self.strikes_left.get("worker", 0) and self.random.random() < TOGETHER:
            self.strikes_left["worker"] -= 1
            asyncio.get_running_loop().call_later(self.random.random() * 0.1, self._kill_worker)
        return True

    def _kill_worker(self) -> None:
        if self.worker is not None:
            self.worker.die("is killed")

    def calm_down(self) -> None:
        """Nothing more goes wrong."""
        self.fuse = None
        self.strikes_left.clear()


class SimulatedDatabase(Database):
    """The server's own, in memory. It is made once, and cleared for each schedule."""

    def __init__(self) -> None:
        super().__init__("sqlite://", serving=True)
        self._world: World | None = None

    def clear(self, world: World) -> None:
        self._world = None
        with suppress(OperationalError):
            self._connection.rollback()
        with self._connection.begin():
            for table in reversed(metadata.sorted_tables):
                if table is not deployment:
                    self._connection.execute(table.delete())
        self._world = world

    def read(self, work: Callable[[Connection], T]) -> T:
        """Look, from outside of any process."""
        with self._connection.begin():
            return work(self._connection)

    def _run(self, work: Callable[[Connection], T]) -> T:
        world = self._world
        assert world is not None

        def doomed(connection: Connection) -> T:
            result = work(connection)
            if world.server is not None and world.strikes("locked", 0.1):
                raise OperationalError("COMMIT", {}, Exception("database is locked"))
            world.point("commit")
            return result

        result = super()._run(doomed)
        world.point("committed")
        return result

    def close(self) -> None:
        """A process closes its own connection; this one is the disk."""
