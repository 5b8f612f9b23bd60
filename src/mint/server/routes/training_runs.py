"""Training runs: found, and what has become of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from mint.server import access, resources
from mint.server.dependencies import Owner, Ready
from mint.store import listings, repository
from mint.store.listings import RunView, Window
from mint.store.schema import Run

router = APIRouter(tags=["training runs"])

Limit: TypeAlias = Annotated[int, Query(ge=1, le=1000)]
Offset: TypeAlias = Annotated[int, Query(ge=0, lt=1 << 63)]
AccessScope: TypeAlias = Literal["owned", "accessible"]
"""One's own objects; or also those that others have published."""


@router.get("/training_runs")
async def list_training_runs(  # the parameters of a query
    services: Ready,
    owner: Owner,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: AccessScope = "owned",
    project_id: str | None = None,
) -> dict[str, Any]:
    """Runs, newest first; "accessible" ones are also those of others that have a published checkpoint."""
    window, accessible = Window(limit, offset), access_scope == "accessible"
    page = await services.database.transaction(
        lambda c: listings.runs_of_owner(c, owner, window, project_id=project_id, accessible=accessible)
    )
    return {
        "training_runs": [resources.training_run(view) for view in page.rows],
        "cursor": resources.cursor(page, window),
    }


@router.get("/training_runs/{run_id}")
async def get_training_run(
    run_id: str, services: Ready, owner: Owner, access_scope: AccessScope = "owned"
) -> dict[str, Any]:
    """One run. Of another's, "accessible" shows what is published."""

    def find(connection: Connection) -> RunView:
        run = repository.find(connection, Run, run_id=run_id)
        shared = run is not None and access_scope == "accessible" and run.owner != owner
        if shared and listings.checkpoints_of_run(connection, run_id, public=True):
            assert run is not None
            return listings.view(connection, run, public=True)
        return listings.view(connection, access.owned(run, owner, "training_run_id", run_id), public=False)

    return resources.training_run(await services.database.transaction(find))
