"""Sessions: made, kept alive, finished."""

from __future__ import annotations

from secrets import token_hex
from time import time

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection
from starlette.background import BackgroundTask

from mint.server import access, lifetimes
from mint.server.dependencies import Owner, Poller, Ready
from mint.store import repository
from mint.store.schema import Session
from mint.wire.requests import CreateSessionRequest, FinishSessionRequest, HeartbeatRequest

router = APIRouter(tags=["sessions"])


@router.post("/create_session")
async def create_session(request: CreateSessionRequest, http: Request, services: Ready, owner: Owner) -> dict[str, str]:
    """Open a session. A retry, told by the SDK's idempotency key, gets the same one."""
    session = Session(
        session_id=f"session-{token_hex(8)}",
        owner=owner,
        created_at=time(),
        last_heartbeat=time(),
        idempotency_key=http.headers.get("x-idempotency-key"),
        sdk_version=request.sdk_version,
        project_id=request.project_id,
        display_name=request.display_name,
        tags=request.tags,
        user_metadata=request.user_metadata,
    )
    stored = await services.database.transaction(lambda c: repository.put_session(c, session))
    return {"session_id": stored.session_id, "type": "create_session"}


@router.post("/session_heartbeat")
async def heartbeat(request: HeartbeatRequest, services: Ready, owner: Poller) -> dict[str, str]:
    """The client lives; 410 once its session is finished, which ends the client's heartbeat."""

    def beat(connection: Connection) -> None:
        access.session(connection, request.session_id, owner)
        repository.touch_session(connection, request.session_id)

    await services.database.transaction(beat)
    services.presence.beat(request.session_id)
    return {"type": "session_heartbeat"}


@router.post("/sessions/{session_id}/finish", status_code=204)
async def finish_session(session_id: str, request: FinishSessionRequest, services: Ready, owner: Owner) -> Response:
    """The client is done: its runs leave the engine, its samples and unnamed revisions go. The first reason stands."""

    def finish(connection: Connection) -> list[str]:
        access.owned(repository.find(connection, Session, session_id=session_id), owner, "session_id", session_id)
        repository.finish_session(connection, session_id, request.reason.type, request.detail)
        return repository.run_ids_of_session(connection, session_id)

    for run_id in await services.database.transaction(finish):
        services.dispatcher.unload(run_id)
    await lifetimes.cancel_samples(services, session_id, f"session {session_id} was finished")
    return Response(status_code=204, background=BackgroundTask(lifetimes.discard_revisions, services, session_id))
