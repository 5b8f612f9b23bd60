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
        numbering: held while an operation that came without a number gets the next one of its run.
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
    numbering: asyncio.Lock = field(default_factory=asyncio.Lock)
    started: asyncio.Event = field(default_factory=asyncio.Event)
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
