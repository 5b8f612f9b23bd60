"""Search of sessions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection

from mint.server import access, resources
from mint.server.dependencies import Owner, Ready
from mint.store import repository, search
from mint.store.schema import Session
from mint.store.search import SessionFilter, SessionView, StatusFilter
from mint.wire.rest import SearchSessionsRequest

router = APIRouter(tags=["sessions"])


@router.post("/sessions/search")
async def search_sessions(request: SearchSessionsRequest, services: Ready, owner: Owner) -> dict[str, Any]:
    """The caller's sessions that match, newest first, a page at a time."""

    def find(connection: Connection) -> list[SessionView]:
        if request.owner.type == "user" and owner not in (request.owner.owner_urns or ()):
            return []
        wanted = _filter(request, owner, services.heard_since)
        return search.search(connection, wanted, request.limit + 1, _after(connection, request, owner))

    found = await services.database.transaction(find)
    page = found[: request.limit]
    more = len(found) > request.limit
    return {
        "sessions": [resources.session_summary(view) for view in page],
        "next_cursor": _cursor(page[-1].session) if more else None,
    }


def _filter(request: SearchSessionsRequest, owner: str, heard_since: float) -> SessionFilter:
    statuses = request.statuses
    return SessionFilter(
        owner=owner,
        heard_since=heard_since,
        session_id=request.session_id,
        display_name=request.display_name,
        project_ids=request.project_ids,
        user_metadata=request.user_metadata,
        statuses=[StatusFilter(each.type, each.reasons) for each in statuses] if statuses is not None else None,
    )


def _after(connection: Connection, request: SearchSessionsRequest, owner: str) -> Session | None:
    """The session that the last page ended with."""
    if request.cursor is None:
        return None
    session_id = request.cursor.last_session_id
    found = repository.find(connection, Session, session_id=session_id)
    return access.owned(found, owner, "cursor.last_session_id", session_id)


def _cursor(last: Session) -> dict[str, str]:
    return {"last_created_at": resources.timestamp(last.created_at), "last_session_id": last.session_id}
