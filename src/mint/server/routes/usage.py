"""What a key uses."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mint.server.dependencies import Owner, Ready
from mint.store import listings

router = APIRouter(tags=["usage"])

GIGABYTE = 10**9


@router.get("/billing/usage/checkpoints/current")
async def checkpoint_storage(services: Ready, owner: Owner, project_id: str | None = None) -> dict[str, Any]:
    """The caller's named checkpoints by project: how many, and the bytes of their files. Nothing has a price here."""
    projects = await services.database.transaction(lambda c: listings.stored_bytes(c, owner, project_id))
    return {
        "data": [
            {
                "project_id": project.project_id,
                "org_user_urn": owner,
                "checkpoint_count": project.count,
                "size_bytes": project.size_bytes,
                "size_gigabytes": project.size_bytes / GIGABYTE,
            }
            for project in projects
        ]
    }
