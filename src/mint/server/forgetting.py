"""What the server forgets, so that its database and its disk do not grow for ever.

Answers go after `answers_kept_seconds`. A session goes, with its journal, its samplers and the recovery of its runs, as
long after it was finished, or when its client has been silent for `sessions_kept_seconds`; its checkpoints stay, with
the runs that hold them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from time import time

from sqlalchemy import Connection

from mint.server.operations.kinds import KINDS
from mint.server.operations.recovery import snapshots_of
from mint.server.services import Services
from mint.store import expiry, repository
from mint.store.schema import RunSnapshot

INDEPENDENT = frozenset(name for name, kind in KINDS.items() if not kind.ordered)
BATCH = 200
"""Rows in one transaction, so that nobody waits long for the database."""


async def forget(services: Services) -> None:
    """One round."""
    config, now = services.config, time()
    answers = partial(expiry.forget_answers, before=now - config.answers_kept_seconds, independent=INDEPENDENT)
    while await services.database.transaction(partial(answers, limit=BATCH)) == BATCH:
        pass
    await _drop_snapshots_of_finished(services)
    find = partial(
        expiry.over,
        finished_before=now - config.answers_kept_seconds,
        silent_before=now - config.sessions_kept_seconds,
        limit=BATCH,
    )
    while over := await services.database.transaction(find):
        for session_id in over:
            await _forget_session(services, session_id, find)
    while await services.database.transaction(partial(expiry.forget_empty, limit=BATCH)) == BATCH:
        pass


async def _forget_session(services: Services, session_id: str, over: Callable[[Connection], list[str]]) -> None:
    """Unless its client has come back meanwhile.

    First it takes no more work; last it is marked, so that a kill in between leaves the rest to the next round.
    """

    def finish(connection: Connection) -> list[str] | None:
        if session_id not in over(connection):
            return None
        detail = f"nothing was heard of its client for {services.config.sessions_kept_seconds:g} s"
        repository.finish_session(connection, session_id, "interrupted", detail)
        return repository.run_ids_of_session(connection, session_id)

    run_ids = await services.database.transaction(finish)
    if run_ids is None:
        return
    for run_id in run_ids:
        services.dispatcher.unload(run_id)
    await _remove_snapshots(services, run_ids)
    while (
        await services.database.transaction(partial(expiry.forget_operations, session_id=session_id, limit=BATCH))
        == BATCH
    ):
        pass
    await services.database.transaction(partial(expiry.forget_session, session_id=session_id))
    services.displaced.difference_update(run_ids)


async def _drop_snapshots_of_finished(services: Services) -> None:
    """Nothing more comes for their runs; those that still have something to do keep them."""
    found: list[RunSnapshot] = await services.database.transaction(partial(expiry.snapshots_of_finished, limit=BATCH))
    if unused := [each.run_id for each in found if not services.dispatcher.has(each.run_id)]:
        await _remove_snapshots(services, unused)


async def _remove_snapshots(services: Services, run_ids: list[str]) -> None:
    """Files first: a row without them is found again."""
    folders = [snapshots_of(services.config.snapshot_dir, run_id) for run_id in run_ids]
    await asyncio.to_thread(_remove, folders)
    await services.database.transaction(partial(expiry.drop_snapshots, run_ids=run_ids))


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        rmtree(folder, ignore_errors=True)
