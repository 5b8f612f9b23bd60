"""What the routes work with: one object of each part of the server, made when the application starts."""

from __future__ import annotations

import asyncio
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
from mint.server.limits import Rates
from mint.server.presence import Presence
from mint.server.results import Results
from mint.server.signing import Signer
from mint.server.tokens import Tokens
from mint.store.database import Database


@dataclass
class Services:
    """The parts of a running server.

    Attributes:
        created_at: when this process began to serve, in Unix seconds.
        started: set once every model is loaded and unfinished operations of the last process are queued again.
        fetches: operations that wait for a checkpoint's files.
        draining: the server is stopping; it accepts no more work.
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
    signer: Signer = field(default_factory=Signer)
    created_at: float = field(default_factory=time)
    presence: Presence = field(default_factory=Presence)
    rates: Rates = field(default_factory=Rates)
    metrics: Metrics = field(default_factory=Metrics)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    fetches: set[asyncio.Task[None]] = field(default_factory=set)
    draining: bool = False

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
        return self.results.folders() | set(self.samples.revisions())

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
