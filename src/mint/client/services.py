"""Sends requests of MinT's own that belong to a session and to no run, and are carried out as they come.

It knows private parts of the SDK; a test fails when those it uses have moved. What the requests are it must not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from tinker import APIFuture, ServiceClient
    from tinker.lib.internal_client_holder import InternalClientHolder

R = TypeVar("R")

Method = Literal["POST", "DELETE"]


def session_of(service: ServiceClient) -> str:
    """The id of a service client's session."""
    return str(service.holder.get_session_id())


def call(
    service: ServiceClient, method: Method, path: str, request: dict[str, Any] | None, read: Callable[[Any], R]
) -> APIFuture[R]:
    """A request that is answered at once.

    Args:
        path: below `/api/v1/`.
        request: the body, JSON.
        read: turns the answer into what the future gives.

    Raises:
        TypeError, ValueError: the request is no JSON.
    """
    body = json.dumps(request, allow_nan=False).encode() if request is not None else None
    holder = service.holder

    async def run() -> R:
        return read(await _send(holder, method, path, body))

    return holder.run_coroutine_threadsafe(run())


def ask(
    service: ServiceClient, path: str, request: dict[str, Any], read: Callable[[dict[str, Any]], R]
) -> APIFuture[R]:
    """A POST that is answered with the id of a future, whose result is `read`; see `call`."""
    from tinker.lib.api_future_impl import _APIFuture  # noqa: PLC0415
    from tinker.lib.queue_state_logger import QueueStateLogger  # noqa: PLC0415
    from tinker.types.shared.untyped_api_future import UntypedAPIFuture  # noqa: PLC0415

    body = json.dumps(request, allow_nan=False).encode()
    holder = service.holder

    async def run() -> R:
        started = time.time()
        accepted = UntypedAPIFuture.model_validate(await _send(holder, "POST", path, body))
        result: dict[str, Any] = await _APIFuture(
            dict,
            holder,
            accepted,
            request_start_time=started,
            request_type=path,
            queue_state_observer=QueueStateLogger(path, "Acting"),
        )
        return read(result)

    return holder.run_coroutine_threadsafe(run())


async def _send(holder: InternalClientHolder, method: Method, path: str, body: bytes | None) -> Any:
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType  # noqa: PLC0415

    options: Any = {"headers": {"Content-Type": "application/json"}} if body is not None else {}

    async def once() -> Any:
        with holder.aclient(ClientConnectionPoolType.SAMPLE) as http:
            send = http.post if method == "POST" else http.delete
            return await send(f"/api/v1/{path}", body=body, options=options, cast_to=object)

    return await holder.execute_with_retries(once)
