"""Sends an operation of MinT's own as the SDK's clients send theirs: in its turn, under its next number.

It knows private parts of the SDK; a test fails when those it uses have moved. What the operations are it must not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tinker import APIFuture, SamplingClient, ServiceClient, TrainingClient
    from tinker.lib.internal_client_holder import InternalClientHolder
    from tinker.types.shared.untyped_api_future import UntypedAPIFuture

T = TypeVar("T")
R = TypeVar("R")

TOO_LARGE = 413


def submit(
    client: TrainingClient,
    path: str,
    request: dict[str, Any],
    answer: type[T],
    read: Callable[[T], R] | Callable[[T], Awaitable[R]],
) -> APIFuture[R]:
    """Send a request to the run of a training client; it is carried out in the order of the calls.

    Args:
        path: below `/api/v1/`.
        request: what the body has beside `model_id` and `seq_id`; JSON.
        answer: what the SDK makes of the result, one of its own types, or dict for plain JSON.
        read: turns that into what the future gives, or into something to await for it.

    Raises:
        TypeError: the request is no JSON. No number has been used.
    """
    from tinker.lib.api_future_impl import _APIFuture  # noqa: PLC0415

    holder = client.holder
    # First the text, then the number: one that is used up and never sent holds up the run.
    text = json.dumps({**request, "model_id": client.model_id})
    place = client._get_request_id()
    # not the SDK's own way to send JSON, which refuses NaN only now; the server says where it is
    body = f'{text[:-1]}, "seq_id": {place + 1}}}'.encode()

    async def run() -> R:
        started = time.time()
        async with client._take_turn(place):
            accepted = await _post_in_turn(holder, path, body, client.model_id, place + 1)
        result = await _APIFuture(
            answer,
            holder,
            accepted,
            request_start_time=started,
            request_type=path,
            queue_state_observer=client._queue_state_logger,
        )
        value = read(result)
        return await value if isinstance(value, Awaitable) else value

    return holder.run_coroutine_threadsafe(run())


def submit_alone(service: ServiceClient, path: str, request: dict[str, Any], read: Callable[[Any], R]) -> APIFuture[R]:
    """Send an operation that belongs to no run; for the arguments see `submit`.

    Raises:
        TypeError: the request is no JSON.
    """
    from tinker.lib.api_future_impl import _APIFuture  # noqa: PLC0415
    from tinker.lib.queue_state_logger import QueueStateLogger  # noqa: PLC0415

    holder = service.holder
    body = json.dumps(request).encode()
    # one for all tries of this call: the SDK's own is new with each
    headers = {"X-Idempotency-Key": str(uuid4())}

    async def run() -> R:
        started = time.time()
        accepted = await _post(holder, path, body, headers)
        observer = QueueStateLogger(path, path)
        result = await _APIFuture(
            dict, holder, accepted, request_start_time=started, request_type=path, queue_state_observer=observer
        )
        return read(result)

    return holder.run_coroutine_threadsafe(run())


def ask(client: ServiceClient, method: Literal["get", "delete"], path: str, read: Callable[[Any], R]) -> APIFuture[R]:
    """Send a request that is answered at once: "get" with JSON, "delete" with nothing.

    Args:
        path: below `/api/v1/`.
        read: turns the JSON, or None, into what the future gives.
    """
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType  # noqa: PLC0415

    holder = client.holder

    async def once() -> object:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as http:
            if method == "get":
                return await http.get(f"/api/v1/{path}", cast_to=object)
            return await http.delete(f"/api/v1/{path}", cast_to=type(None))

    async def run() -> R:
        return read(await holder.execute_with_retries(once))

    return holder.run_coroutine_threadsafe(run())


async def sampling_client(client: TrainingClient, sampling_session_id: str, base_model: str | None) -> SamplingClient:
    """A client of a sampling session that the server has made."""
    from tinker import SamplingClient  # noqa: PLC0415

    created: SamplingClient = await SamplingClient.create(
        client.holder, sampling_session_id=sampling_session_id, base_model=base_model
    )
    return created


async def _post_in_turn(
    holder: InternalClientHolder, path: str, body: bytes, model_id: str, seq_id: int
) -> UntypedAPIFuture:
    from tinker import APIStatusError  # noqa: PLC0415

    try:
        return await _post(holder, path, body)
    except APIStatusError as error:
        if error.status_code == TOO_LARGE:
            # The server has not read whose number this is, and would wait for it. It refuses what comes without a
            # content too, and then the number is spent.
            number_alone = json.dumps({"model_id": model_id, "seq_id": seq_id}).encode()
            with suppress(APIStatusError):
                await _post(holder, path, number_alone)
        raise


async def _post(
    holder: InternalClientHolder, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> UntypedAPIFuture:
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType  # noqa: PLC0415
    from tinker.types.shared.untyped_api_future import UntypedAPIFuture  # noqa: PLC0415

    async def once() -> UntypedAPIFuture:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as http:
            return await http.post(
                f"/api/v1/{path}",
                body=body,
                options={"headers": {"Content-Type": "application/json", **(headers or {})}},
                cast_to=UntypedAPIFuture,
            )

    return await holder.execute_with_retries(once)


def create_run(service: ServiceClient, base_model: str, request: dict[str, Any]) -> APIFuture[TrainingClient]:
    """Make a run of a service client's session, and a training client of it.

    Args:
        request: what the body of create_model has beside the session, its number there and `base_model`; JSON.

    Raises:
        TypeError: the request is no JSON. No number has been used.
    """
    from tinker import TrainingClient, types  # noqa: PLC0415
    from tinker.lib.api_future_impl import _APIFuture  # noqa: PLC0415
    from tinker.lib.public_interfaces import training_client as module  # noqa: PLC0415
    from tinker.lib.queue_state_logger import QueueStateLogger  # noqa: PLC0415

    json.dumps(request)
    holder = service.holder
    session_id, number = holder.get_session_id(), holder.get_training_client_id()
    whole = {**request, "session_id": session_id, "model_seq_id": number, "base_model": base_model}

    async def run() -> TrainingClient:
        started = time.time()
        created = await _APIFuture(
            types.CreateModelResponse,
            holder,
            await _post(holder, "create_model", json.dumps(whole).encode()),
            request_start_time=started,
            request_type="CreateModel",
            queue_state_observer=QueueStateLogger(base_model, "Model creation"),
        )
        # versions before 0.38 ask for what a run is when they need it
        fetch = getattr(module, "fetch_training_info", None)
        known = {"info": await fetch(holder, created.model_id)} if fetch is not None else {}
        return TrainingClient(holder, model_seq_id=number, model_id=created.model_id, **known)

    return holder.run_coroutine_threadsafe(run())


def awaitable(future: Future[T]) -> APIFuture[T]:
    """What runs in a thread, as the SDK's clients hand out what they run: for `.result()` or `await`."""
    from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture  # noqa: PLC0415

    return AwaitableConcurrentFuture(future)
