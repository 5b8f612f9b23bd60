"""What the routes work with: one object of each part of the server, made when the application starts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time

from mint.config import ServerConfig
from mint.dispatch.dispatcher import Dispatcher
from mint.dispatch.fleet import Fleet
from mint.dispatch.sample_queue import SampleQueue
from mint.errors import UnavailableError
from mint.observability.metrics import Metrics
from mint.server.auth import Keys
from mint.server.catalog import Catalog
from mint.server.completions import Completions
from mint.server.limits import Rates
from mint.server.presence import Presence
from mint.server.results import Results
from mint.server.signing import Signer
from mint.server.tokens import Tokens
from mint.store.database import Database
from mint.store.schema import Operation


class Underway(Counter[str]):
    """How many of something are under way now, by name; one of which there are none is not in it."""

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """One more, for as long as the block takes."""
        self[name] += 1
        try:
            yield
        finally:
            self[name] -= 1
            if not self[name]:
                del self[name]


@dataclass
class Services:
    """The parts of a running server.

    Attributes:
        created_at: when this process began to serve, in Unix seconds.
        displaced: runs whose clients' numbers may not be places any more; see `store.places`.
        started: set once every model is loaded and unfinished operations of the last process are queued again.
        interpolating: which folders are read for a sum of checkpoints, by the operation that is under way.
        fetching: operations that wait for a checkpoint's files, by request id; who takes one out has to finish it.
        fetches: the tasks that fetch these files.
        draining: the server is stopping; it accepts no more work.
        downloads: checkpoint folders that are being downloaded; the sweeper leaves them alone.
        uploads: owners who are uploading.
    """

    config: ServerConfig
    database: Database
    fleet: Fleet
    dispatcher: Dispatcher
    samples: SampleQueue
    catalog: Catalog
    keys: Keys
    tokens: Tokens
    results: Results
    completions: Completions = field(default_factory=Completions)
    signer: Signer = field(default_factory=Signer)
    created_at: float = field(default_factory=time)
    presence: Presence = field(default_factory=Presence)
    rates: Rates = field(default_factory=Rates)
    metrics: Metrics = field(default_factory=Metrics)
    interpolating: dict[str, set[str]] = field(default_factory=dict)
    displaced: set[str] = field(default_factory=set)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    fetching: dict[str, Operation] = field(default_factory=dict)
    fetches: set[asyncio.Task[None]] = field(default_factory=set)
    draining: bool = False
    downloads: Underway = field(default_factory=Underway)
    uploads: Underway = field(default_factory=Underway)

    @property
    def heard_since(self) -> float:
        """When a session must have been heard of to be live now, in Unix seconds."""
        return time() - self.config.session_timeout_seconds

    def check_accepting(self) -> None:
        """Let work in.

        Raises:
            UnavailableError: the server is stopping.
        """
        if self.draining:
            raise UnavailableError("the server is stopping")

    def read_now(self) -> set[str]:
        """Checkpoint folders that work under way reads."""
        sums = set[str]().union(*list(self.interpolating.values()))
        return {*self.results.folders(), *self.samples.revisions(), *self.downloads, *sums}

    async def fetch(self, folder: str) -> None:
        """Have a checkpoint folder here to be read.

        Raises:
            NotFoundError: it is gone.
            DamagedError: it is not what was saved.
            UnavailableError: the store of objects does not answer, or the disk is full.
        """
        store = self.catalog.store
        if store.is_here(folder):
            return
        try:
            await asyncio.to_thread(store.fetch, folder)
            await asyncio.to_thread(store.trim, self.read_now() | {folder})
        except OSError as error:
            raise UnavailableError(f"the files of a checkpoint cannot be fetched: {error.strerror}") from error
