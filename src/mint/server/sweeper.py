"""The sweeper: takes expired names away, deletes files that nobody reads, and finds what a crash left behind.

Names go first, files follow, and last the note that they are to go. A kill in between leaves work for the next round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import count
from time import time

from sqlalchemy import Connection

from mint.server.forgetting import forget
from mint.server.operations.kinds import REPLAYED
from mint.server.services import Services
from mint.store import checkpoints, files
from mint.store.folders import CheckpointStore

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
ORPHANS_EVERY = 24 * 60
"""Rounds between looks at all folders."""
ORPHAN_SECONDS = 3600.0
"""A folder that is younger may belong to a request that is not journaled yet."""
FORGET_EVERY = 10
"""Rounds between looks for what is to be forgotten."""
BATCH = 200
"""Rows in one transaction, so that nobody waits long for the database."""


async def keep_sweeping(services: Services) -> None:
    """Sweep once the server has started, and then again and again."""
    started = time()
    await services.started.wait()
    for number in count():
        try:
            if number % ORPHANS_EVERY == 0:
                await sweep_orphans(services, before=time() - ORPHAN_SECONDS if number else started)
            await sweep(services)
            if number % FORGET_EVERY == 0:
                await forget(services)
        except Exception:
            logger.exception("sweeping failed; the next round tries again")
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(services: Services) -> None:
    """One round."""
    await _all(services, partial(checkpoints.expire, limit=BATCH))
    await _delete_unread(services)


async def end_revisions(services: Services, session_id: str) -> None:
    """A session is over: its revisions without a name go."""
    await _all(services, partial(checkpoints.forget_unnamed, session_id=session_id, limit=BATCH))
    await _delete_unread(services)


async def _delete_unread(services: Services) -> None:
    def find(connection: Connection) -> list[str]:
        # of samples that are not journaled, of downloads and of sums, no row says what they read
        return checkpoints.deletable(connection, REPLAYED, services.read_now(), BATCH)

    while folders := await services.database.transaction(find):
        await asyncio.to_thread(_delete, services.catalog.store, folders)
        await services.database.transaction(partial(checkpoints.deleted, directories=folders))


async def _all(services: Services, work: Callable[[Connection], int]) -> None:
    while await services.database.transaction(work) == BATCH:
        pass


async def sweep_orphans(services: Services, before: float) -> int:
    """Delete folders, last written before that time, that no row knows and no operation is writing; returns how many.

    A save leaves one that ended in an error, or when the server was killed after it.
    """
    store, removed = services.catalog.store, 0
    names = await asyncio.to_thread(lambda: list(store.older_than(before)))
    for start in range(0, len(names), BATCH):
        orphans = await services.database.transaction(partial(_orphans, names[start : start + BATCH]))
        await asyncio.to_thread(_delete, store, orphans)
        removed += len(orphans)
    return removed


def _orphans(names: list[str], connection: Connection) -> list[str]:
    staged = [name for name in names if name.endswith(files.STAGED)]
    whole = [name for name in names if not name.endswith(files.STAGED)]
    written = checkpoints.being_written(connection, [name.removesuffix(files.STAGED) for name in staged])
    known = checkpoints.accounted_for(connection, whole)
    orphans = [name for name in staged if name.removesuffix(files.STAGED) not in written]
    return orphans + [name for name in whole if name not in known]


def _delete(store: CheckpointStore, names: list[str]) -> None:
    for name in names:
        store.remove(name)
