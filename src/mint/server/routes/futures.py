"""Results of operations: a long-poll that ends the moment there is one."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection

from mint.errors import GoneError
from mint.server import access
from mint.server.completions import MARGIN_SECONDS, PER_CLONE, Ended, Target
from mint.server.dependencies import Poller, Ready
from mint.server.large_json import encode
from mint.server.operations.cancel import cancel
from mint.server.pending import not_served, pending
from mint.store import journal
from mint.store.schema import Operation, Status
from mint.wire.passes import JSON, PROTOBUF, pass_output_as_json
from mint.wire.requests import CancelFutureRequest, RetrieveFutureRequest, RetrieveFuturesRequest
from mint.wire.samples import sample_as_json

router = APIRouter(tags=["futures"])

LARGE_RESULT = 64 << 10
"""Bytes of protobuf; to write as much in JSON takes some ten milliseconds."""


@router.post("/cancel_future", status_code=204)
async def cancel_future(request: CancelFutureRequest, services: Ready, owner: Poller) -> Response:
    """Nobody waits for this sample any more: it ends, and its memory is free. Once cancelled, it is so for good."""
    await cancel(services, request.request_id, owner)
    return Response(status_code=204)


@router.post("/retrieve_future")
async def retrieve_future(request: RetrieveFutureRequest, http: Request, services: Ready, owner: Poller) -> Response:
    """The result, or 408 after a while without one: then ask again. A result can be fetched repeatedly."""

    request_id = request.request_id
    found = services.results.find(request_id)
    if found is None:
        found = await services.database.transaction(lambda c: journal.find(c, request_id))
    if found is None:
        raise GoneError(f"{request_id} is unknown or has expired", field="request_id")
    access.owned(found, owner, "request_id", request_id)
    services.presence.beat(found.client)
    if found.status == Status.PENDING and services.results.find(request_id) is None:
        # the journal has it, and this process does not work on it; asked at once, the client would ask again at once
        await asyncio.sleep(services.config.long_poll_seconds)
        return not_served(found)
    if found.status == Status.PENDING:
        found = await services.results.wait(request_id, services.config.long_poll_seconds) or found
    if found.status == Status.PENDING:
        return pending(services, found)
    return await _answer(found, http.headers.get("accept", ""))


@router.post("/retrieve_futures")
async def retrieve_futures(request: RetrieveFuturesRequest, services: Ready, owner: Poller) -> dict[str, Any]:
    """Which samples of a client have ended since its cursor; asked for their results one by one.

    Held open like `retrieve_future` until one ends.
    """
    target = Target(request.target.sampling_session_id, request.target.cloned_sampler_id)
    transaction, cursor = services.database.transaction, request.prev_cursor
    sampler = await transaction(lambda c: access.sampler(c, target.sampling_session_id, owner))
    services.presence.beat(sampler.session_id)
    feed = services.completions.feed(target, cursor, services.config.session_timeout_seconds)
    # the feed has begun, so that nothing ends between what the journal has and what it will have
    earlier = await transaction(lambda c: _ended_before(c, target, cursor)) if cursor < feed.floor else []
    longest = services.config.long_poll_seconds
    seconds = min(longest, longest if request.timeout is None else request.timeout)
    ended = await feed.wait(cursor, 0 if earlier or services.completions.closing else seconds)
    known = {each.request_id: each for each in (*earlier, *ended)}
    return {"completions": [_completion(each) for each in known.values()], "cursor": max(cursor, feed.cursor)}


def _ended_before(connection: Connection, target: Target, cursor: int) -> list[Ended]:
    """What the journal has of a client's samples that ended after a cursor, or not long before."""
    numbers = range(target.clone * PER_CLONE, (target.clone + 1) * PER_CLONE)
    found = journal.outcomes(connection, target.sampling_session_id, numbers, cursor / 1e6 - MARGIN_SECONDS)
    return [Ended(each.request_id, each.status == Status.FAILED, each.size) for each in found]


def _completion(ended: Ended) -> dict[str, Any]:
    if ended.failed:
        return {"state": "failed", "request_id": ended.request_id}
    return {
        "state": "finished",
        "request_id": ended.request_id,
        "response_payload_uncompressed_size": ended.size,
    }


async def _answer(operation: Operation, accept: str) -> Response:
    """The stored result, in protobuf where the client reads that, in JSON otherwise."""
    assert operation.result is not None
    if operation.result_type != PROTOBUF:
        return Response(operation.result, media_type=JSON)
    if PROTOBUF in accept:
        return Response(operation.result, media_type=PROTOBUF)
    large = len(operation.result) > LARGE_RESULT
    text = await asyncio.to_thread(_as_json, operation) if large else _as_json(operation)
    return Response(text, media_type=JSON)


def _as_json(operation: Operation) -> str:
    assert operation.result is not None
    as_json = sample_as_json if operation.kind == "sample" else pass_output_as_json
    return encode(as_json(operation.result))
