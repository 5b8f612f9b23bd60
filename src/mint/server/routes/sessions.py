"""Sessions: made, kept alive, found, finished."""

from __future__ import annotations

from secrets import token_hex
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection
from starlette.background import BackgroundTask

from mint.server import access, lifetimes
from mint.server.dependencies import Owner, Poller, Ready
from mint.server.resources import DEFAULT_PROJECT
from mint.server.routes.training_runs import AccessScope, Limit, Offset
from mint.server.sweeper import end_revisions
from mint.store import listings, repository
from mint.store.listings import Window
from mint.store.schema import Session
from mint.wire.requests import CreateSessionRequest, FinishSessionRequest, HeartbeatRequest
from mint.wire.rest import ProjectRequest

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
        project_id=request.project_id or DEFAULT_PROJECT,
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
        access.any_session(connection, session_id, owner)
        repository.finish_session(connection, session_id, request.reason.type, request.detail)
        return repository.run_ids_of_session(connection, session_id)

    for run_id in await services.database.transaction(finish):
        services.dispatcher.unload(run_id)
    await lifetimes.cancel_samples(services, session_id, f"session {session_id} was finished")
    return Response(status_code=204, background=BackgroundTask(end_revisions, services, session_id))


@router.get("/sessions")
async def list_sessions(
    services: Ready, owner: Owner, limit: Limit = 20, offset: Offset = 0, access_scope: AccessScope = "owned"
) -> dict[str, list[str]]:
    """Ids, newest first. Sessions are never shared, so that both scopes are the caller's own."""
    del access_scope
    window = Window(limit, offset)
    return {"sessions": await services.database.transaction(lambda c: listings.session_ids_of_owner(c, owner, window))}


@router.get("/sessions/{session_id}")
async def get_session(
    session_id: str, services: Ready, owner: Owner, access_scope: AccessScope = "owned"
) -> dict[str, Any]:
    """What was made in a session."""
    del access_scope

    def find(connection: Connection) -> dict[str, Any]:
        session = access.any_session(connection, session_id, owner)
        return {
            "training_run_ids": repository.run_ids_of_session(connection, session_id),
            "sampler_ids": repository.sampler_ids_of_session(connection, session_id),
            "user_metadata": session.user_metadata,
            "display_name": session.display_name,
        }

    return await services.database.transaction(find)


@router.put("/sessions/{session_id}/project", status_code=204)
async def assign_project(session_id: str, request: ProjectRequest, services: Ready, owner: Owner) -> Response:
    """Move a session, with its runs and checkpoints, to a project."""

    def assign(connection: Connection) -> None:
        access.any_session(connection, session_id, owner)
        repository.assign_project(connection, session_id, request.project_id)

    await services.database.transaction(assign)
    return Response(status_code=204)
