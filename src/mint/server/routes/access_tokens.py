"""Weights access tokens: who has one may read a checkpoint that is another's."""

from __future__ import annotations

from time import time
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Path
from sqlalchemy import Connection

from mint.errors import NotFoundError
from mint.server import access, resources
from mint.server.dependencies import Owner, Ready
from mint.server.routes.checkpoints import ONE, change
from mint.store import audit, weights_tokens
from mint.store.schema import Checkpoint
from mint.store.weights_tokens import WeightsToken
from mint.wire.rest import TtlRequest

router = APIRouter(tags=["checkpoints"])

TokenId: TypeAlias = Annotated[int, Path(ge=1, lt=1 << 31)]


@router.post(f"{ONE}/access_tokens")
async def create_access_token(  # the three parts of a path
    run_id: str, segment: str, name: str, request: TtlRequest, services: Ready, owner: Owner
) -> dict[str, Any]:
    """A token for one's own checkpoint. It is shown this once, and without a time to live holds until revoked."""
    ttl = request.ttl_seconds
    expires_at = time() + ttl if ttl is not None else None

    def create(connection: Connection, found: Checkpoint) -> tuple[str, WeightsToken]:
        secret, token = weights_tokens.create(connection, found, expires_at)
        audit.record(connection, "weights_token_create", owner, path=found.path, token_id=token.token_id)
        return secret, token

    secret, token = await change(services, (run_id, segment, name), owner, create)
    return {access.TOKEN_FIELD: secret, **_public(token)}


@router.get(f"{ONE}/access_tokens")
async def list_access_tokens(
    run_id: str, segment: str, name: str, services: Ready, owner: Owner
) -> dict[str, list[dict[str, Any]]]:
    """The tokens that hold for a checkpoint of the caller's."""
    found = await change(services, (run_id, segment, name), owner, weights_tokens.of_checkpoint)
    return {"access_tokens": [_public(token) for token in found]}


@router.delete(f"{ONE}/access_tokens/{{token_id}}", status_code=204)
async def revoke_access_token(  # the three parts of a path
    run_id: str, segment: str, name: str, token_id: TokenId, services: Ready, owner: Owner
) -> None:
    """End a token. What was made with it before goes on."""

    def revoke(connection: Connection, found: Checkpoint) -> None:
        if not weights_tokens.revoke(connection, found, token_id):
            raise NotFoundError(f"{found.path} has no token {token_id} that holds", field="token_id")
        audit.record(connection, "weights_token_revoke", owner, path=found.path, token_id=token_id)

    await change(services, (run_id, segment, name), owner, revoke)


def _public(token: WeightsToken) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "created_at": resources.timestamp(token.created_at),
        "expires_at": resources.timestamp(token.expires_at) if token.expires_at is not None else None,
    }
