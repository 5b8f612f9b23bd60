"""Sends an operation of MinT's own as the SDK's training client sends its: in its turn, under its next number.

With `patches`, the only file that knows private parts of the SDK; a test fails when those it uses have moved. What the
operations are it must not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tinker import APIFuture, TrainingClient

T = TypeVar("T")
R = TypeVar("R")


def submit(
    client: TrainingClient,
    path: str,
    request: dict[str, Any],
    answer: type[T],
    read: Callable[[T], R],
) -> APIFuture[R]:
    """Send a request to the run of a training client; it is carried out in the order of the calls.

    Args:
        path: below `/api/v1/`.
        request: what the body has beside `model_id` and `seq_id`; JSON.
        answer: what the SDK makes of the result, one of its own types, or dict for plain JSON.
        read: turns that into what the future gives.

    Raises:
        TypeError: the request is no JSON. No number has been used.
    """
    from tinker.lib.api_future_impl import _APIFuture  # noqa: PLC0415
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType  # noqa: PLC0415
    from tinker.types.shared.untyped_api_future import UntypedAPIFuture  # noqa: PLC0415

    holder = client.holder
    # First the text, then the number: one that is used up and never sent holds up the run.
    text = json.dumps({**request, "model_id": client.model_id})
    place = client._get_request_id()
    # not the SDK's own way to send JSON, which refuses NaN only now; the server says where it is
    body = f'{text[:-1]}, "seq_id": {place + 1}}}'.encode()

    async def post() -> UntypedAPIFuture:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as http:
            return await http.post(
                f"/api/v1/{path}",
                body=body,
                options={"headers": {"Content-Type": "application/json"}},
                cast_to=UntypedAPIFuture,
            )

    async def run() -> R:
        started = time.time()
        async with client._take_turn(place):
            accepted = await holder.execute_with_retries(post)
        result = await _APIFuture(
            answer,
            holder,
            accepted,
            request_start_time=started,
            request_type=path,
            queue_state_observer=client._queue_state_logger,
        )
        return read(result)

    return holder.run_coroutine_threadsafe(run())
