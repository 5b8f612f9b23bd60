"""What the routes work with: one object of each part of the server, made when the application starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import time

from mint.config import ServerConfig
from mint.dispatch.dispatcher import Dispatcher
from mint.dispatch.fleet import Fleet
from mint.dispatch.sample_queue import SampleQueue
from mint.server.auth import Keys
from mint.server.catalog import Catalog
from mint.server.presence import Presence
from mint.server.results import Results
from mint.server.signing import Signer
from mint.store.database import Database


@dataclass
class Services:
    """The parts of a running server.

    Attributes:
        created_at: when this process began to serve, in Unix seconds.
        started: set once every model is loaded and unfinished operations of the last process are queued again.
    """

    config: ServerConfig
    database: Database
    fleet: Fleet
    dispatcher: Dispatcher
    samples: SampleQueue
    catalog: Catalog
    keys: Keys
    results: Results
    signer: Signer = field(default_factory=Signer)
    created_at: float = field(default_factory=time)
    presence: Presence = field(default_factory=Presence)
    started: asyncio.Event = field(default_factory=asyncio.Event)
