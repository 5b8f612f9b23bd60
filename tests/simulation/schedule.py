"""One schedule: from a seed to clients, misfortunes, processes of the server, and what they must leave behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy.exc import OperationalError

from mint.config import EngineConfig, ModelSource, ServerConfig
from mint.dispatch import fleet
from mint.errors import MintError
from mint.server.app import build, running
from mint.server.auth import given_key
from mint.server.forgetting import forget
from mint.server.http import drain
from mint.server.services import Services
from mint.server.sweeper import sweep, sweep_orphans
from mint.store import counts, journal
from mint.store.folders import LocalStore
from tests.dispatch.fakes import MODEL
from tests.simulation import invariants
from tests.simulation.client import Client
from tests.simulation.determinism import Sources
from tests.simulation.loop import VirtualLoop
from tests.simulation.programs import Session, make_session
from tests.simulation.worker import SimulatedWorker
from tests.simulation.world import Killed, SimulatedDatabase, Violation, World

KEYS = ("sk-alice-secret", "sk-bob-secret")
GAP_SECONDS, SESSION_SECONDS = 40.0, 200.0
ANSWERS_KEPT, SESSIONS_KEPT = 50.0, 220.0
PATIENCE = 2000.0
"""Seconds of virtual time after which nothing more will come."""
FIRST_FUSE = 300
"""A process that is killed has come to at most so many points."""


@dataclass
class Scenario:
    """A schedule's clients and misfortunes, and how far it has come."""

    world: World
    sessions: list[Session]
    kills: int
    stops: int
    phase: int = 0
    gaps: list[tuple[str, int]] = field(default_factory=list)

    @property
    def config(self) -> ServerConfig:
        return ServerConfig(
            data_dir=self.world.folder,
            models=(ModelSource(MODEL, "/nowhere"),),
            api_keys=KEYS,
            gap_seconds=GAP_SECONDS,
            snapshot_seconds=self.snapshot_seconds,
            long_poll_seconds=5.0,
            session_timeout_seconds=SESSION_SECONDS,
            # nothing is forgotten before all has been looked at
            answers_kept_seconds=ANSWERS_KEPT if self.phase == 2 else PATIENCE,
            sessions_kept_seconds=SESSIONS_KEPT if self.phase == 2 else PATIENCE,
            engine=EngineConfig(max_decode_batch=4),
        )

    snapshot_seconds: float = 1.0

    async def process(self) -> None:
        """A process of the server, from its start to its end, and what clients do meanwhile."""
        world = self.world
        services = build(self.config, world.database, LocalStore(self.config.checkpoint_dir))
        async with running(services) as startup:
            await startup
            world.server = services
            world.trace("server has started")
            await self._live(services)
            drain(services)
            world.trace("server is stopped")
        world.server = None

    async def _live(self, services: Services) -> None:
        life = asyncio.create_task(self._play(services))
        if self.stops and self.world.random.random() < 0.3:
            self.stops -= 1
            await asyncio.wait([life], timeout=self.world.random.uniform(0.5, 10))
            if life.done():
                life.result()
            return
        await life

    async def _play(self, services: Services) -> None:
        clients = [Client(self.world, session, given_key(KEYS[session.key])) for session in self.sessions]
        if self.phase == 0:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(client.play() for client in clients))
            self.phase = 1
        if self.phase == 1:
            self.world.calm_down()
            await self._settle()
            await invariants.check_results(self.world, services, self.sessions, self.gaps)
            self.phase = 2
        if self.phase == 2:
            services.config = self.config
            await self._leave(clients)
            await self._clean_up(services)
            invariants.check_leftovers(self.world, services)
            self.phase = 3

    async def _leave(self, clients: list[Client]) -> None:
        """Some clients end as they should, and others are just not there any more."""
        for client, session in zip(clients, self.sessions, strict=True):
            if session.session_id and not session.vanished and session.key == 0:
                with suppress(MintError):  # what has been forgotten was finished before
                    await client.finish()
        await asyncio.sleep(SESSIONS_KEPT + SESSION_SECONDS / 10)

    async def _clean_up(self, services: Services) -> None:
        """What the server does by itself, only sooner."""
        for work in (forget, sweep):
            await self._insist(partial(work, services))
        await self._insist(partial(sweep_orphans, services, before=self.world.clock.unix()))

    @staticmethod
    async def _insist(work: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await work()
            except OperationalError:
                await asyncio.sleep(1.0)
            else:
                return

    async def _settle(self) -> None:
        """Until every acknowledged operation has its result, and the worker nothing more to do."""
        deadline = self.world.clock.now + PATIENCE
        while self.world.database.read(counts.pending_by_kind) or not (self.world.worker and self.world.worker.resting):
            if self.world.clock.now > deadline:
                rows = self.world.database.read(journal.pending)
                raise Violation(f"never finished: {[(row.stream, row.seq_id, row.kind) for row in rows]}")
            await asyncio.sleep(1.0)


class Gaps(logging.Handler):
    """Notes the numbers that runs go on without."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self._scenario = scenario

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, str) and "goes on without" in record.msg:
            assert isinstance(record.args, tuple)
            run_id, number = record.args
            self._scenario.gaps.append((str(run_id), int(str(number))))
        if record.levelno >= logging.ERROR:
            self._scenario.world.trace("log:", record.getMessage(), record.exc_info[1] if record.exc_info else "")


class Stage:
    """What is made once for many schedules: the database and the hold on time and chance."""

    def __init__(self, folder: TemporaryDirectory[str]) -> None:
        self._temporary = folder
        self._folder = Path(folder.name) / "data"
        self._sources = Sources()
        self._sources.take_over()
        self._database = SimulatedDatabase()

    def play(self, seed: int, *, traced: bool = False) -> World:
        """Play a schedule to its end.

        Raises:
            Violation: something was as it must never be; `world` of it has the trace.
        """
        random = Random(seed)
        world = World(random, self._database, self._folder, traced=traced)
        self._sources.begin(world.clock, Random(seed + 1))
        scenario = make_scenario(world)
        handler = Gaps(scenario)
        logger = logging.getLogger("mint")
        logger.addHandler(handler)
        start = SimulatedWorker.start

        async def start_worker(source: ModelSource, config: EngineConfig) -> SimulatedWorker:
            return await start(world, source, config)

        fleet.LocalWorker.start = start_worker  # type: ignore[method-assign, assignment]
        try:
            while scenario.phase < 3:
                self._process(scenario)
        except TimeoutError:
            raise Violation("a client waits for ever", world=world) from None
        except Violation as violation:
            violation.world = world
            raise
        finally:
            logger.removeHandler(handler)
        return world

    def _process(self, scenario: Scenario) -> None:
        world, random = scenario.world, scenario.world.random
        if scenario.kills:
            scenario.kills -= 1
            world.fuse = random.randrange(1, FIRST_FUSE)
        loop = VirtualLoop(world.clock, random, world.point)
        loop.set_exception_handler(lambda _loop, context: self._report(world, context))
        try:
            loop.run_until_complete(scenario.process())
        except Killed:
            if world.worker is not None:
                world.worker.orphaned()
        finally:
            world.server = world.worker = None
            world.fuse = None
            loop.set_exception_handler(lambda *_: None)
            loop.close()
        world.clock.now += random.uniform(0.1, 5.0)

    @staticmethod
    def _report(world: World, context: dict[str, Any]) -> None:
        world.trace("loop:", context.get("message"), repr(context.get("exception")))
        if isinstance(context.get("exception"), Exception):
            world.faults.append(f"{context['message']}: {context['exception']!r}")


def make_scenario(world: World) -> Scenario:
    """Clients and misfortunes, as the seed has them."""
    random = world.random
    deadly = random.random() < 0.1
    sessions = [make_session(random, 0, size=random.randint(3, 8), deadly=deadly)]
    if random.random() < 0.3:
        sessions.append(make_session(random, 1, size=random.randint(1, 4), deadly=False))
    world.strikes_left = {
        "worker": 0 if deadly else random.choice((0, 1, 2)),  # more could look like an operation that kills workers
        "start": random.choice((0, 1)),
        "locked": random.choice((0, 0, 2, 6)),
        "request lost": random.choice((0, 2)),
        "request twice": random.choice((0, 3)),
        "response lost": random.choice((0, 3)),
    }
    scenario = Scenario(world, sessions, kills=random.choice((0, 1, 1, 2, 3)), stops=random.choice((0, 0, 1)))
    scenario.snapshot_seconds = random.choice((0.0, 0.3, 3.0))
    return scenario
