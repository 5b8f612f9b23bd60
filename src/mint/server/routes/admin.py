"""The audit log and usage: an admin's key reads those of all owners, a user's its owner's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from time import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import AwareDatetime
from sqlalchemy import Connection

from mint.errors import BadRequestError
from mint.server.dependencies import AnyTime, Caller
from mint.server.resources import timestamp
from mint.store import audit, listings, repository, usage
from mint.store.keys import Key, Role
from mint.store.schema import Session
from mint.store.usage import HOUR, Bucket, Use

router = APIRouter(tags=["admin"])

LONGEST_DAYS = 14
RESOURCES = {"checkpoints": "checkpoint", "projects": "project", "teams": "team", "organizations": "organization"}
EventType = Literal["all", "checkpoints", "projects", "teams", "organizations"]


def _scope(key: Key) -> str | None:
    """Whose events a key may read; None for everybody's."""
    return None if key.role == Role.ADMIN else key.owner


@router.get("/audit")
async def audit_log(
    services: AnyTime, caller: Caller, event_type: EventType = "all", day: date | None = None
) -> dict[str, Any]:
    """The events of a day, from midnight to midnight UTC; today's unless one is named."""
    start = datetime.combine(day or datetime.now(UTC).date(), datetime.min.time(), UTC)
    since, resource, owner = start.timestamp(), RESOURCES.get(event_type), _scope(caller)
    found = await services.database.transaction(
        lambda c: audit.entries(c, since, since + 24 * HOUR, resource=resource, owner=owner)
    )
    return {"entries": [_entry(entry) for entry in found]}


def _entry(entry: audit.Entry) -> dict[str, Any]:
    details = {"owner": entry.owner, **entry.details}
    return {"timestamp": timestamp(entry.timestamp), "event": entry.event, "event_details": details}


@router.get("/billing/usage/events")
async def usage_events(
    services: AnyTime, caller: Caller, starting_on: AwareDatetime, ending_before: AwareDatetime
) -> dict[str, Any]:
    """What finished operations used, by the hour, over two weeks at most. There are no prices."""
    since, before = _window(starting_on, ending_before)

    def read(connection: Connection) -> dict[str, Any]:
        buckets = usage.between(connection, since, before, _scope(caller))
        ids = sorted({bucket.session_id for bucket, _ in buckets if bucket.session_id})
        sessions = {session_id: repository.find(connection, Session, session_id=session_id) for session_id in ids}
        return {
            "data": [_event(bucket, quantity, sessions.get(bucket.session_id)) for bucket, quantity in buckets],
            "sessions": {
                name: {"user_metadata": found.user_metadata if found is not None else None}
                for name, found in sessions.items()
            },
        }

    return await services.database.transaction(read)


def _window(starting_on: datetime, ending_before: datetime) -> tuple[int, int]:
    for field, moment in (("starting_on", starting_on), ("ending_before", ending_before)):
        if (moment.minute, moment.second, moment.microsecond) != (0, 0, 0) or moment.timestamp() % HOUR:
            raise BadRequestError("must be a full hour UTC", field=field)
    if starting_on.timestamp() > time():
        raise BadRequestError("lies in the future", field="starting_on")
    if not timedelta() < ending_before - starting_on <= timedelta(days=LONGEST_DAYS):
        raise BadRequestError(f"must be after starting_on, by {LONGEST_DAYS} days at most", field="ending_before")
    return int(starting_on.timestamp()), int(ending_before.timestamp())


def _event(bucket: Bucket, quantity: int, session: Session | None) -> dict[str, Any]:
    return {
        "bucket_start": timestamp(bucket.hour),
        "bucket_end": timestamp(bucket.hour + HOUR),
        "base_model": bucket.base_model,
        "user_id": bucket.owner,
        "session_id": bucket.session_id or None,
        "project_id": session.project_id if session is not None else None,
        "stream_id": bucket.stream,
        "event_info": _info(bucket.use, quantity),
    }


def _info(use: Use, quantity: int) -> dict[str, Any]:
    match use:
        case Use.TRAINING:
            return {"type": "training", "token_count": quantity}
        case Use.PREFILL | Use.CACHED_PREFILL:
            return {"type": "sampling_prefill", "cached": use == Use.CACHED_PREFILL, "token_count": quantity}
        case Use.SAMPLED:
            return {"type": "sampling_sample", "token_count": quantity}
        case Use.CHECKPOINTS:
            return {"type": "checkpoint", "count": quantity}


@router.get("/billing/usage/checkpoints/current")
async def stored_checkpoints(services: AnyTime, caller: Caller, project_id: str | None = None) -> dict[str, Any]:
    """Named checkpoints, by project and owner: how many, and the bytes of their files. There are no prices."""
    groups = await services.database.transaction(lambda c: listings.stored_bytes(c, _scope(caller), project_id))
    return {
        "data": [
            {
                "project_id": group.project_id,
                "org_user_urn": group.owner,
                "checkpoint_count": group.count,
                "size_bytes": group.size_bytes,
                "size_gigabytes": group.size_bytes / 1e9,
            }
            for group in groups
        ]
    }
