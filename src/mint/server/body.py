"""Request bodies: read within limits, decompressed, with their content type."""

from __future__ import annotations

from fastapi import Request

from mint.errors import TooLargeError
from mint.wire.passes import decompress


async def read_body(request: Request, max_bytes: int) -> tuple[bytes, str]:
    """The body and its content type, without parameters.

    Raises:
        TooLargeError: it is larger than `max_bytes`, before or after decompression.
        BadRequestError: it is not encoded as its header says.
    """
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"is larger than {max_bytes} bytes", field="body")
        pieces.append(piece)
    body = decompress(b"".join(pieces), request.headers.get("content-encoding"), max_bytes)
    return body, request.headers.get("content-type", "").partition(";")[0].strip().lower()
