"""One log line for each HTTP request, and an id that joins it to other lines about the same request."""

from __future__ import annotations

import logging
import re
from secrets import token_hex
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mint.observability.logs import begin, bind

logger = logging.getLogger("mint.access")

HEADER = "x-request-id"
GOOD_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestLog:
    """ASGI middleware. A caller's own `X-Request-Id` is kept if it is short and plain; the response carries it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        theirs = Headers(scope=scope).get(HEADER, "")
        request_id = theirs if GOOD_ID.fullmatch(theirs) else token_hex(8)
        status, started = 500, perf_counter()
        begin(http_request_id=request_id, method=scope["method"], path=scope["path"])

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            bind(status=status, ms=round(1000 * (perf_counter() - started), 1))
            logger.info("%s %s %d", scope["method"], scope["path"], status)
