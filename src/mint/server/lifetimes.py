"""What goes with a session: its samples under way, and the revisions that have no name.

It goes when the session is finished, and when its client has not been heard of for `session_timeout_seconds`. The runs
of a client that has gone leave the engine; should it come back, from a machine that slept, they are rebuilt. A sample
without a session goes when nobody has asked for its result for as long.
"""

from __future__ import annotations

import asyncio
import logging

from mint.errors import OperationCancelledError
from mint.server.operations.cancel import give_up
from mint.server.services import Services
from mint.server.sweeper import end_revisions
from mint.store import repository

logger = logging.getLogger(__name__)


async def cancel_samples(services: Services, client: str, reason: str) -> None:
    """Give up the samples of a session, or one without; each fails with the reason."""
    error = OperationCancelledError(reason)
    await give_up(services, services.samples.of_client(client), lambda each: each.client == client, error)


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
    for client in services.samples.clients():
        if services.presence.absent(client, seconds):
            await cancel_samples(services, client, f"nothing was heard of {client} for {seconds:g} s")
    for run_id in services.dispatcher.idle():
        if services.presence.absent(run_id.partition(":")[0], seconds):
            services.dispatcher.unload(run_id)
    for session in await services.database.transaction(repository.sessions_with_revisions):
        if session.finished_at is not None or services.presence.absent(session.session_id, seconds):
            await end_revisions(services, session.session_id)
