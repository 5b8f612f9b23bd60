"""What the routes work with: one object of each part of the server, made when the application starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mint.config import ServerConfig
from mint.dispatch.dispatcher import Dispatcher
from mint.dispatch.fleet import Fleet
from mint.observability.metrics import Metrics
from mint.server.auth import Keys
from mint.server.catalog import Catalog
from mint.server.limits import Rates
from mint.server.results import Results
from mint.server.tokens import Tokens
from mint.store.database import Database


@dataclass
class Services:
    """The parts of a running server.

    Attributes:
        started: set once every model is loaded and unfinished operations of the last process are queued again.
        draining: the server is stopping; it accepts no more work.
    """

    config: ServerConfig
    database: Database
    fleet: Fleet
    dispatcher: Dispatcher
    catalog: Catalog
    keys: Keys
    tokens: Tokens
    results: Results
    rates: Rates = field(default_factory=Rates)
    metrics: Metrics = field(default_factory=Metrics)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
