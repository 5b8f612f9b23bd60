"""Checkpoints: found, published, given a time to live, copied, deleted."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from time import time
from typing import Annotated, Any, TypeAlias, TypeVar

from fastapi import APIRouter, Depends, Header
from sqlalchemy import Connection

from mint.errors import InUseError
from mint.server import access, resources
from mint.server.dependencies import Caller, Owner, Ready
from mint.server.operations.copies import copy_weights
from mint.server.operations.kinds import REPLAYED
from mint.server.routes.training_runs import Limit, Offset
from mint.server.services import Services
from mint.store import audit, checkpoints, listings, repository
from mint.store.listings import Window
from mint.store.schema import Checkpoint, Run
from mint.wire.paths import CheckpointPath
from mint.wire.rest import CopyWeightsRequest, TtlRequest, WeightsInfoRequest

router = APIRouter(tags=["checkpoints"])

T = TypeVar("T")

ONE = "/training_runs/{run_id}/checkpoints/{segment}/{name}"
"""A checkpoint's id is `segment/name`."""

OLD_SDK = re.compile(r"0\.(?:\d|1\d|2\d)\.\d+")
"""Versions before 0.30, whose lists of checkpoints fail on a type that they do not know."""


async def _knows_external(x_stainless_package_version: Annotated[str, Header()] = "") -> bool:
    return OLD_SDK.fullmatch(x_stainless_package_version) is None


KnowsExternal: TypeAlias = Annotated[bool, Depends(_knows_external)]

HeaderText = Annotated[str | None, Header()]


@router.get("/checkpoints")
async def list_user_checkpoints(
    services: Ready, owner: Owner, external: KnowsExternal, limit: Limit = 100, offset: Offset = 0
) -> dict[str, Any]:
    """The caller's checkpoints, newest first."""
    window = Window(limit, offset)
    page = await services.database.transaction(
        lambda c: listings.checkpoints_of_owner(c, owner, window, external=external)
    )
    return {
        "checkpoints": [resources.checkpoint(row) for row in page.rows],
        "cursor": resources.cursor(page, window),
    }


@router.get("/training_runs/{run_id}/checkpoints")
async def list_checkpoints(run_id: str, services: Ready, owner: Owner, external: KnowsExternal) -> dict[str, Any]:
    """A run's checkpoints, newest first; of another's run, those that are published."""

    def find(connection: Connection) -> list[Checkpoint]:
        run = repository.find(connection, Run, run_id=run_id)
        public = run is not None and run.owner != owner
        found = listings.checkpoints_of_run(connection, run_id, public=public, external=external)
        if not (public and found):
            access.owned(run, owner, "training_run_id", run_id)
        return found

    return {"checkpoints": [resources.checkpoint(row) for row in await services.database.transaction(find)]}


@router.post("/weights_info")
async def weights_info(request: WeightsInfoRequest, services: Ready, owner: Owner) -> dict[str, Any]:
    """Base model and LoRA of a checkpoint."""

    def find(connection: Connection) -> Checkpoint:
        path = CheckpointPath.parse(access.canonical(connection, request.tinker_path, "weights"), "tinker_path")
        return access.checkpoint(connection, str(path), owner, "tinker_path")

    found = await services.database.transaction(find)
    return {
        "base_model": found.base_model,
        "is_lora": True,
        "lora_rank": found.lora_rank,
        "train_unembed": found.train_unembed,
        "train_mlp": found.train_mlp,
        "train_attn": found.train_attn,
        "optimizer_config": {"type": "adamw"},
    }


@router.delete(ONE, status_code=204)
async def delete_checkpoint(run_id: str, segment: str, name: str, services: Ready, owner: Owner) -> None:
    """Delete; 400 while something of the caller's reads it. Others that read it finish, and find it no more."""

    def delete(connection: Connection, found: Checkpoint) -> None:
        if not checkpoints.shared(connection, found):
            reader = checkpoints.reader(connection, found, REPLAYED, services.heard_since)
            if reader is not None:
                raise InUseError(f"{found.path} is in use by {reader}", field="checkpoint_id")
        checkpoints.remove(connection, found)
        audit.record(connection, "checkpoint_delete", owner, path=found.path)

    await change(services, (run_id, segment, name), owner, delete)


@router.post(f"{ONE}/publish", status_code=204)
async def publish(run_id: str, segment: str, name: str, services: Ready, owner: Owner) -> None:
    """Let every key of this server read it."""
    await change(services, (run_id, segment, name), owner, partial(_set_public, public=True))


@router.delete(f"{ONE}/publish", status_code=204)
async def unpublish(run_id: str, segment: str, name: str, services: Ready, owner: Owner) -> None:
    """Keep it to its owner again. Samplers and runs that others have made of it go on."""
    await change(services, (run_id, segment, name), owner, partial(_set_public, public=False))


def _set_public(connection: Connection, found: Checkpoint, *, public: bool) -> None:
    if found.public != public:
        checkpoints.change(connection, found, public=public)
        event = "checkpoint_publish" if public else "checkpoint_unpublish"
        audit.record(connection, event, found.owner, path=found.path)


@router.put(f"{ONE}/ttl", status_code=204)
async def set_ttl(run_id: str, segment: str, name: str, request: TtlRequest, services: Ready, owner: Owner) -> None:
    """Say when it expires, counted from now; null is never."""
    ttl = request.ttl_seconds
    expires_at = time() + ttl if ttl is not None else None
    await change(
        services, (run_id, segment, name), owner, lambda c, found: checkpoints.change(c, found, expires_at=expires_at)
    )


async def change(
    services: Services, place: tuple[str, str, str], owner: str, work: Callable[[Connection, Checkpoint], T]
) -> T:
    """Do something to a checkpoint of the caller's, or with it; `place` is run, segment and name.

    Raises:
        NotFoundError: there is none of that name; the run's owner is told so, nobody else.
    """
    run_id = place[0]

    def carry_out(connection: Connection) -> T:
        access.owned(repository.find(connection, Run, run_id=run_id), owner, "training_run_id", run_id)
        path = CheckpointPath.parse(f"tinker://{'/'.join(place)}", "checkpoint_id")
        return work(connection, access.own_checkpoint(connection, str(path), owner))

    return await services.database.transaction(carry_out)


@router.post("/copy_weights")
async def copy(
    request: CopyWeightsRequest,
    services: Ready,
    caller: Caller,
    x_idempotency_key: HeaderText = None,
    x_tinker_weights_access_token: HeaderText = None,
) -> dict[str, Any]:
    """Another name for a checkpoint that the caller, or an access token, may read; its files are shared."""
    token = x_tinker_weights_access_token or request.weights_access_token
    return await services.database.transaction(lambda c: copy_weights(c, request, x_idempotency_key, token, caller))
