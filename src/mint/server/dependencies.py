"""What routes ask for by type: the services, and who is calling."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from mint.errors import PermissionDeniedError, UnavailableError
from mint.observability.logs import bind
from mint.server.services import Services
from mint.store.keys import Key, Role


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _credential(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return request.headers.get("x-api-key") or bearer


async def _known(
    request: Request,
    services: Annotated[Services, Depends(_services)],
    credential: Annotated[str, Depends(_credential)],
) -> Key:
    key = await services.keys.caller(credential)
    request.state.caller = key
    bind(owner=key.owner)
    return key


async def _caller(key: Annotated[Key, Depends(_known)], services: Annotated[Services, Depends(_services)]) -> Key:
    services.rates.take(key)
    return key


async def _owner(key: Annotated[Key, Depends(_caller)]) -> str:
    return key.owner


async def _poller(key: Annotated[Key, Depends(_known)]) -> str:
    return key.owner


async def _admin(key: Annotated[Key, Depends(_caller)]) -> Key:
    if key.role != Role.ADMIN:
        raise PermissionDeniedError("only a key with the role admin may ask for this")
    return key


Credential: TypeAlias = Annotated[str, Depends(_credential)]
"""What the request presents: a key, a token, or nothing; unchecked."""

Caller: TypeAlias = Annotated[Key, Depends(_caller)]
"""The request's key; 401 without a good one, 429 when it asks for more than it may per second."""

Owner: TypeAlias = Annotated[str, Depends(_owner)]
"""Who presents the request's key; as `Caller`."""

Poller: TypeAlias = Annotated[str, Depends(_poller)]
"""As `Owner`, for what clients send by themselves to stay alive, learn of results and give up: it is never too much."""

Admin: TypeAlias = Annotated[Key, Depends(_admin)]
"""As `Caller`; 403 if the key is not an admin's."""


async def _ready(services: Annotated[Services, Depends(_services)], _key: Annotated[Key, Depends(_known)]) -> Services:
    """Requests wait for the start as they would for a result: the SDK asks again without a pause after a 503."""
    try:
        async with asyncio.timeout(services.config.long_poll_seconds):
            await services.started.wait()
    except TimeoutError:
        raise UnavailableError("the server is starting: its models are being loaded") from None
    return services


AnyTime: TypeAlias = Annotated[Services, Depends(_services)]
"""The services, also while models are being loaded."""

Ready: TypeAlias = Annotated[Services, Depends(_ready)]
"""The services, once the server has started; 503 if that takes long."""
