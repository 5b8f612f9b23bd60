"""Request bodies: read within limits, decompressed, with their content type."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mint.wire.passes import decompress


class LimitedBody:
    """ASGI middleware: whatever reads a body, reads no more than `max_bytes` of it, on paths that begin so.

    Args:
        besides: a path whose route has a limit of its own.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, prefixes: tuple[str, ...] = ("/",), besides: str | None = None
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._prefixes = prefixes
        self._besides = besides

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        size = 0

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                # the one kind of exception that FastAPI lets through while it reads a body
                raise HTTPException(413, f"body: is larger than {self._max_bytes} bytes")
            return message

        limited = scope["type"] == "http" and scope["path"].startswith(self._prefixes)
        limited = limited and scope["path"] != self._besides
        await self._app(scope, receive_some if limited else receive, send)


async def read_body(request: Request, max_bytes: int) -> tuple[bytes, str]:
    """The body and its content type, without parameters.

    Raises:
        TooLargeError: it is larger than `max_bytes` after decompression.
        BadRequestError: it is not encoded as its header says.
    """
    body = decompress(await request.body(), request.headers.get("content-encoding"), max_bytes)
    return body, request.headers.get("content-type", "").partition(";")[0].strip().lower()
