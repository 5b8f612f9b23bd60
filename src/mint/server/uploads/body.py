"""The body of an upload: a form whose `file` goes to the disk as it comes, and whose other parts are short texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from mint.errors import BadRequestError, TooLargeError

FILE = "file"
MAX_TEXT_BYTES = 4096
MAX_PARTS = 16
PIECE = 1 << 20


async def receive(http: Request, target: Path, max_bytes: int) -> dict[str, str]:
    """Write the form's file to `target`; returns its other parts.

    Raises:
        BadRequestError: the body is no such form.
        TooLargeError: the file is larger than `max_bytes`.
        OSError: the disk refuses.
    """
    kind, options = parse_options_header(http.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise BadRequestError("is not multipart/form-data with a boundary", field="Content-Type")
    with target.open("wb") as file:
        form = _Form(file, max_bytes)
        try:
            with PushMultipartParser(options["boundary"], max_segment_count=MAX_PARTS) as parser:
                async for pieces in _large(http.stream()):
                    await asyncio.to_thread(_parse, parser, pieces, form)
        except (MultipartError, UnicodeDecodeError) as error:
            raise BadRequestError(f"is no multipart form: {error}", field="body") from None
    if not form.has_file:
        raise BadRequestError("is missing: an archive with the checkpoint's files", field=FILE)
    return form.texts()


async def _large(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Chunks put together, so that each is worth a thread's time."""
    pieces = bytearray()
    async for chunk in chunks:
        pieces += chunk
        if len(pieces) >= PIECE:
            yield bytes(pieces)
            pieces.clear()
    if pieces:
        yield bytes(pieces)


def _parse(parser: PushMultipartParser, data: bytes, form: _Form) -> None:
    for event in parser.parse(data):
        if isinstance(event, MultipartSegment):
            form.begin(event.name)
        elif event:
            form.add(event)


class _Form:
    """The parts of a form, as they come."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.has_file = False
        self._file = file
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._name = ""
        self._texts: dict[str, bytearray] = {}

    def begin(self, name: str) -> None:
        """The next part."""
        if name in self._texts or (name == FILE and self.has_file):
            raise BadRequestError("is there twice", field=name)
        self._name = name
        if name == FILE:
            self.has_file = True
        else:
            self._texts[name] = bytearray()

    def add(self, data: bytes) -> None:
        """More of the part."""
        if self._name == FILE:
            self._left -= len(data)
            if self._left < 0:
                message = f"has more than {self._max_bytes} bytes, which no checkpoint has here"
                raise TooLargeError(message, field=FILE)
            self._file.write(data)
            return
        self._texts[self._name] += data
        if len(self._texts[self._name]) > MAX_TEXT_BYTES:
            raise BadRequestError(f"has more than {MAX_TEXT_BYTES} bytes", field=self._name)

    def texts(self) -> dict[str, str]:
        """All parts but the file.

        Raises:
            BadRequestError: one is no text.
        """
        try:
            return {name: value.decode() for name, value in self._texts.items()}
        except UnicodeDecodeError as error:
            raise BadRequestError(f"a part is no UTF-8: {error}", field="body") from None
