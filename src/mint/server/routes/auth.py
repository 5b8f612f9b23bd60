"""Keys as their holders see them: exchanged for a token, looked at, given up."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from mint.errors import BadRequestError
from mint.server.dependencies import AnyTime, Caller, Credential
from mint.store import audit, keys

router = APIRouter(prefix="/auth", tags=["auth"])


@router.post("/token")
async def exchange(services: AnyTime, caller: Caller, credential: Credential) -> dict[str, str]:
    """A token for a key. A token is answered with itself: exchanging one does not lengthen its life."""
    if services.keys.is_token(credential):
        return {"jwt": credential}
    whose = {"key_id": caller.key_id}
    await services.database.transaction(lambda c: audit.record(c, "token_create", caller.owner, **whose))
    return {"jwt": services.tokens.issue(caller)}


@router.get("/apikey/me")
async def own_key(services: AnyTime, caller: Caller) -> dict[str, Any]:
    """What `tinker auth login` asks before it stores a key. A tenant's name stands for organization and e-mail."""
    whose = {"key_id": caller.key_id}
    await services.database.transaction(lambda c: audit.record(c, "key_login", caller.owner, **whose))
    details = {"org_details": {"name": caller.owner}, "user_details": {"email": caller.owner}}
    return {"key_id": caller.key_id, "name": caller.name, "note": caller.note, "details": details}


@router.delete("/apikey/me", status_code=204)
async def revoke_own_key(services: AnyTime, caller: Caller) -> Response:
    """End the key that asks, and its tokens."""
    key_id = caller.key_id
    if key_id is None or services.keys.is_given(caller):
        raise BadRequestError("this key was given to the server when it started, and ends when it starts without it")

    def revoke(connection: Connection) -> None:
        if keys.revoke(connection, key_id) is not None:
            audit.record(connection, "key_revoke", caller.owner, key_id=key_id)

    await services.database.transaction(revoke)
    services.keys.look_again()
    return Response(status_code=204)
