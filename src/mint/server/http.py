"""The HTTP server: uvicorn, which on its way out lets go of long-polls first."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from mint.server.services import Services

GRACE_SECONDS = 3
"""For requests that are being answered when the server is told to stop."""


class HttpServer(uvicorn.Server):
    """Serves the application until a signal."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain first: what uvicorn then waits for is short."""
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None:
            drain(services)
        await super().shutdown(sockets)


def drain(services: Services) -> None:
    """Take no more work, and answer long-polls with what there is: their clients ask again, and then the next process.

    Results that have come are still written; what has none stays in the journal.
    """
    services.draining = True
    services.results.close()
    services.completions.close()
