"""What goes with a session: its samples under way, and the revisions that have no name.

It goes when the session is finished, and when its client has not been heard of for `session_timeout_seconds`. The runs
of a client that has gone stay: it may come back, from a machine that slept, and train on.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from shutil import rmtree

from mint.errors import OperationCancelledError
from mint.server.services import Services
from mint.store import repository

logger = logging.getLogger(__name__)


async def cancel_samples(services: Services, session_id: str, reason: str) -> None:
    """Give up a session's samples; each fails with the reason."""
    await services.samples.cancel(services.samples.of_session(session_id), OperationCancelledError(reason))


async def discard_revisions(services: Services, session_id: str) -> None:
    """Remove the files of a session's revisions without a name, then their rows."""
    revisions = await services.database.transaction(lambda c: repository.revisions_of_session(c, session_id))
    for revision in revisions:
        folder = services.catalog.checkpoint_dir / revision.directory
        await asyncio.to_thread(rmtree, folder, ignore_errors=True)
        if folder.exists():
            logger.warning("%s could not be removed", folder)
        else:
            await services.database.transaction(partial(repository.forget_checkpoint, key=revision.checkpoint_id))


async def watch(services: Services) -> None:
    """Look after sessions as long as the server runs."""
    await services.started.wait()
    services.presence.start()
    while True:
        await asyncio.sleep(services.config.session_timeout_seconds / 10)
        try:
            await _sweep(services)
        except Exception:
            logger.exception("sessions could not be looked after; trying again")


async def _sweep(services: Services) -> None:
    seconds = services.config.session_timeout_seconds
    services.presence.forget(seconds)
    for session_id in services.samples.sessions():
        if services.presence.absent(session_id, seconds):
            await cancel_samples(services, session_id, f"nothing was heard of {session_id} for {seconds:g} s")
    for session in await services.database.transaction(repository.sessions_with_revisions):
        if session.finished_at is not None or services.presence.absent(session.session_id, seconds):
            await discard_revisions(services, session.session_id)
