"""What is told of an operation that has no result yet: its place in line, and when to ask again.

The SDK reads `queue_state` and its reason; the rest is for other clients, also as headers. Nothing is told that is not
known: no estimate before there is a rate, no progress of what is with a worker.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse

from mint.server.services import Services
from mint.store.schema import Operation

ASK_AGAIN_SECONDS = 0
"""The answer was held back as long as it may be; the next may be asked for at once."""

HEADERS = {"queue_depth": "X-Queue-Depth", "queue_position": "X-Queue-Position", "estimated_wait_s": "X-Queue-ETA-S"}


def not_served(operation: Operation) -> JSONResponse:
    """It waits in the journal for a model that this process does not have."""
    reason = f"{operation.facts['model']} is not served now"
    return _answer({"queue_state": "paused_capacity", "queue_state_reason": reason})


def pending(services: Services, operation: Operation) -> JSONResponse:
    """It is under way, or in line: a sample for a place in the batch, an operation of a run behind those before it."""
    wait = services.samples.wait(operation.request_id)
    if wait is None:
        place = services.dispatcher.place(operation.stream, operation.seq_id)
        line = {"queue_position": place[0], "queue_depth": place[1]} if place is not None else {}
        return _answer({"queue_state": "active", **line})
    reason = f"number {wait.position} of {wait.depth} in line for a place in the batch"
    line = {"queue_position": wait.position, "queue_depth": wait.depth}
    answer: dict[str, Any] = {"queue_state": "paused_capacity", **line, "progress": 0.0}
    if wait.seconds is not None:
        answer["estimated_wait_s"] = round(wait.seconds, 1)
        reason += f", about {math.ceil(wait.seconds)} s at the present rate"
    return _answer({**answer, "queue_state_reason": reason})


def _answer(content: dict[str, Any]) -> JSONResponse:
    headers = {HEADERS[name]: str(math.ceil(value)) for name, value in content.items() if name in HEADERS}
    content["retry_after_s"] = ASK_AGAIN_SECONDS
    return JSONResponse(content, 408, {"Retry-After": str(ASK_AGAIN_SECONDS), **headers})
