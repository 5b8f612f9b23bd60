"""The application: its parts, its routes, its start and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from shutil import rmtree

from fastapi import FastAPI

from mint.config import ServerConfig
from mint.dispatch.dispatcher import Dispatcher
from mint.dispatch.fleet import Fleet
from mint.dispatch.sample_queue import SampleQueue
from mint.engine.core import WorkerDiedError
from mint.errors import ModelLoadError
from mint.server import errors
from mint.server.auth import Keys, given_key
from mint.server.body import LimitedBody
from mint.server.catalog import Catalog
from mint.server.lifetimes import watch
from mint.server.openai import routes as openai
from mint.server.openai.requests import MAX_BODY_BYTES
from mint.server.operations.recovery import ServerJournal, resume, take_up_lost
from mint.server.request_log import RequestLog
from mint.server.results import Results
from mint.server.routes import (
    access_tokens,
    admin,
    auth,
    bootstrap,
    checkpoints,
    downloads,
    futures,
    health,
    models,
    operations,
    policies,
    samplers,
    search,
    sessions,
    tokenizers,
    traces,
    training_runs,
    uploads,
)
from mint.server.services import Services
from mint.server.sweeper import keep_sweeping
from mint.server.tokens import Tokens
from mint.store import places
from mint.store.database import Database
from mint.store.folders import CheckpointStore, LocalStore
from mint.store.keys import Role
from mint.store.objects import checkpoint_store

logger = logging.getLogger(__name__)

PREFIX = "/api/v1"

WINDOW_PER_BATCH = 1.25
"""Sequences that a worker is sent, by those of its decode batch: some are at hand when others end."""


def open_database(config: ServerConfig) -> Database:
    """The database of a configuration, for a server alone.

    Raises:
        SQLAlchemyError: it cannot be opened, or another server has it.
        MintError: it is none that is supported, or does not keep what is asked of it.
    """
    if config.database_url is not None:
        return Database(config.database_url, durability=config.durability, serving=True)
    return Database.at(config.data_dir / "mint.db", durability=config.durability, serving=True)


def create_app(config: ServerConfig, database: Database | None = None) -> FastAPI:
    """The application for a configuration; it starts its workers when it is run.

    Without a `database` it opens its own then. Either is closed at the end.

    `app.state.startup` is the task that loads the models; it fails with `ModelLoadError` if one cannot be.

    Raises:
        MintError: the URL of the store of checkpoints is none.
    """
    store = checkpoint_store(config.checkpoint_dir, config.checkpoint_store, config.checkpoint_cache_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = build(config, database or open_database(config), store)
        app.state.services = services
        try:
            async with running(services) as app.state.startup:
                yield
        finally:
            services.database.close()

    app = FastAPI(title="MinT", version=version("mint"), lifespan=lifespan)
    app.add_middleware(LimitedBody, max_bytes=config.max_body_bytes, besides=f"{PREFIX}{uploads.PATH}")
    app.add_middleware(LimitedBody, max_bytes=MAX_BODY_BYTES, prefixes=openai.PREFIXES)
    app.add_middleware(RequestLog)
    errors.install(app)
    app.include_router(health.router)
    rest = (sessions, search, traces, training_runs, checkpoints, access_tokens, downloads, uploads, admin)
    for module in (bootstrap, auth, *rest, models, tokenizers, operations, policies, samplers, futures):
        app.include_router(module.router, prefix=PREFIX)
    for prefix in openai.PREFIXES:
        app.include_router(openai.router, prefix=prefix)
    return app


@asynccontextmanager
async def running(services: Services) -> AsyncIterator[asyncio.Task[None]]:
    """What works in the background, as long as the server runs; gives the task that loads the models."""
    startup = asyncio.create_task(_start(services))
    looking_after = [asyncio.create_task(work(services)) for work in (watch, keep_sweeping, take_up_lost)]
    try:
        yield startup
    finally:
        startup.cancel()
        for task in (*looking_after, *services.fetches):
            task.cancel()
        await services.fleet.close()
        await services.samples.close()
        await services.dispatcher.close()


def build(config: ServerConfig, database: Database, store: CheckpointStore) -> Services:
    """The parts of a server, none of which does anything yet."""
    rmtree(config.upload_dir, ignore_errors=True)  # what the last process was receiving
    tokens = Tokens(config.data_dir)
    given = [given_key(key) for key in config.api_keys] + [given_key(key, Role.ADMIN) for key in config.admin_keys]
    fleet = Fleet(config.models, config.engine)
    catalog = Catalog(config, fleet, store)
    return Services(
        config=config,
        database=database,
        fleet=fleet,
        dispatcher=Dispatcher(
            fleet, ServerJournal(database, catalog, config.snapshot_dir), config.gap_seconds, config.snapshot_seconds
        ),
        samples=SampleQueue(fleet, int(WINDOW_PER_BATCH * config.engine.max_decode_batch), config.max_waiting_samples),
        catalog=catalog,
        keys=Keys(given, database, tokens),
        tokens=tokens,
        results=Results(),
    )


async def _start(services: Services) -> None:
    """See that the folders are this database's, load the models, then take up what the last process left."""
    await asyncio.to_thread(_claim, services)
    try:
        await services.fleet.start()
    except WorkerDiedError as error:
        raise ModelLoadError(str(error)) from error
    services.displaced |= await services.database.transaction(places.streams)
    count = await resume(services)
    if count:
        logger.info("%d unfinished operations were queued again", count)
    services.started.set()


def _claim(services: Services) -> None:
    deployment_id, config = services.database.deployment_id, services.config
    assert deployment_id is not None
    LocalStore(config.checkpoint_dir).claim(deployment_id)
    services.catalog.store.claim(deployment_id)
