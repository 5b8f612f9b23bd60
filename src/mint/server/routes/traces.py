"""The timeline of a session: its operations from acceptance to result, in the JSON that Perfetto and Chrome open.

A row per run and per sampler. Operations overlap, since clients do not wait for one before they send the next, so each
is an asynchronous slice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response

from mint.server import access
from mint.server.dependencies import AnyTime, Owner, Ready
from mint.server.large_json import encode
from mint.store import journal, repository
from mint.store.journal import Span
from mint.store.schema import Status
from mint.wire.passes import JSON

router = APIRouter(tags=["sessions"])


@router.get("/sessions/{session_id}/trace_export")
async def export_trace(session_id: str, http: Request, services: Ready, owner: Owner) -> dict[str, Any]:
    """A link to the timeline, which is drawn when it is fetched and needs no key for an hour."""

    await services.database.transaction(lambda c: access.any_session(c, session_id, owner))
    return {"status": "ready", "url": services.signer.link(http, "download_trace", session_id=session_id).url}


@router.get("/traces/{session_id}")
async def download_trace(
    session_id: str, http: Request, services: AnyTime, expires: str = "", signature: str = ""
) -> Response:
    """The timeline, for who has a link."""
    services.signer.check(http, expires, signature)
    streams = await services.database.transaction(lambda c: repository.streams_of_session(c, session_id))
    rows = [(name, await services.database.transaction(partial(journal.spans, stream=name))) for name in streams]
    return Response(await asyncio.to_thread(_timeline, rows), media_type=JSON)


def _timeline(rows: list[tuple[str, list[Span]]]) -> str:
    events = [event for place, (stream, spans) in enumerate(rows, start=1) for event in _row(place, stream, spans)]
    return encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _row(place: int, stream: str, spans: list[Span]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": place, "args": {"name": stream}}
    for span in spans:
        common = {"name": span.kind, "cat": "operation", "id": span.request_id, "pid": place, "tid": 0}
        details = {"request_id": span.request_id, "seq_id": span.seq_id, "status": span.status}
        yield {**common, "ph": "b", "ts": _microseconds(span.created_at), "args": details}
        ended = span.finished_at if span.status != Status.PENDING else None
        yield {**common, "ph": "e", "ts": _microseconds(ended if ended is not None else time())}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
