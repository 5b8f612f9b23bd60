"""What routes ask for by type: the services, and who is calling."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from mint.errors import UnavailableError
from mint.server.services import Services


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _owner(request: Request, services: Annotated[Services, Depends(_services)]) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else None
    return services.keys.owner(request.headers.get("x-api-key") or bearer)


Owner: TypeAlias = Annotated[str, Depends(_owner)]
"""Who presents the request's key; 401 without a good one."""


async def _ready(services: Annotated[Services, Depends(_services)], _known: Owner) -> Services:
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
