"""The end of an operation: its result is written down, with the rows it changes, and whoever waits is woken."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import time
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mint.engine.core import Planned, Result
from mint.errors import SERVER_FAULT, MintError
from mint.server.accounting import accounted, measured
from mint.server.operations.kind import Completion, Kind
from mint.server.operations.kinds import KINDS
from mint.server.services import Services
from mint.store import files, journal
from mint.store.dialects import UNAVAILABLE
from mint.store.folders import CheckpointStore
from mint.store.schema import Operation, Status
from mint.store.usage import TOKENS

logger = logging.getLogger(__name__)

R = TypeVar("R")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between tries to write a result while the database refuses."""

COMMITS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commits")
"""One thread: of two saves under one name the later one stands, so they are committed in order."""


async def finish(
    services: Services,
    kind: Kind[R],
    operation: Operation,
    request: R,
    command: Planned,
    outcome: Result | MintError,
) -> None:
    """Write the result down, then wake whoever waits for it."""
    if isinstance(outcome, MintError):
        await fail(services, operation, outcome)
        return
    try:
        completion = await _complete(services, kind, operation, request, outcome)
        used = measured(command, outcome)
        await _write(services, operation, Status.DONE, accounted(operation, completion, used))
    except MintError as error:
        await fail(services, operation, error)
    except Exception:  # a fault of ours: without a result, the client would wait for ever
        logger.exception("operation %s could not be finished", operation.request_id)
        await fail(services, operation, MintError(SERVER_FAULT))
    else:
        for use in used.keys() & TOKENS:
            services.metrics.tokens(use, used[use])


async def fail(services: Services, operation: Operation, error: MintError) -> None:
    """Write down that an operation has failed, and how."""
    await _write(services, operation, Status.FAILED, Completion(failure(error)))


async def _complete(services: Services, kind: Kind[R], operation: Operation, request: R, result: Result) -> Completion:
    try:
        if kind.saves:  # files are hashed, which would hold up everyone else
            loop, store = asyncio.get_running_loop(), services.catalog.store
            await loop.run_in_executor(COMMITS, _commit, kind, request, store, operation.request_id)
            await loop.run_in_executor(COMMITS, store.trim, services.read_now())
        return kind.finish(services.catalog, operation, request, result)
    except OSError as error:
        logger.exception("operation %s could not be finished", operation.request_id)
        raise MintError(f"the files could not be put in place: {error.strerror}") from error


def _commit(kind: Kind[R], request: R, store: CheckpointStore, name: str) -> None:
    kind.seal(store.root / f"{name}{files.STAGED}", request)
    store.commit(name)


async def _write(services: Services, operation: Operation, status: Status, completion: Completion) -> None:
    """Write a result, however long that takes: the worker has carried the operation out, so it must not be lost.

    Raises:
        MintError: the rows that go with the result cannot be; it is not written.
    """

    tries = 0

    def write(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        if tries > 1 and _is_written(connection, operation):
            return
        completion.effect(connection)
        journal.finish(
            connection,
            operation.request_id,
            status,
            completion.media_type,
            completion.body,
            keep_payload=status == Status.DONE and KINDS[operation.kind].replayed,
        )

    pause = FIRST_PAUSE
    while True:
        try:
            await services.database.transaction(write)
        except UNAVAILABLE:
            logger.exception("the result of %s cannot be written; trying again", operation.request_id)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        except SQLAlchemyError as error:
            logger.exception("the result of %s does not fit the database", operation.request_id)
            raise MintError("the result could not be written; see the server's log") from error
        else:
            break
    finished = replace(operation, status=status, payload=b"", result_type=completion.media_type, result=completion.body)
    services.metrics.finished(operation.kind, status, time() - operation.created_at)
    services.results.put(finished)
    services.completions.put(finished)


def _is_written(connection: Connection, operation: Operation) -> bool:
    """Whether the try before did it after all: a connection may be lost between a commit and the word of it."""
    found = journal.find(connection, operation.request_id)
    return found is not None and found.status != Status.PENDING


def failure(error: MintError) -> bytes:
    """A failed future, as the SDK reads it."""
    return json.dumps({"error": str(error), "category": error.category}).encode()
