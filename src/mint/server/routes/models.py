"""Live runs: what they are, which there are, and that their memory can be had back."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mint.server import access, resources
from mint.server.dependencies import Owner, Ready
from mint.server.routes.training_runs import Limit, Offset
from mint.store import listings
from mint.store.listings import Window
from mint.wire.requests import ModelRequest

router = APIRouter(tags=["models"])


@router.post("/get_info")
async def get_info(request: ModelRequest, services: Ready, owner: Owner) -> dict[str, Any]:
    """A run's base model and LoRA. `tokenizer_id` of a local model is a folder on this machine."""
    run = await services.database.transaction(lambda c: access.run(c, request.model_id, owner))
    model = services.catalog.model(run.base_model)
    return {
        "type": "get_info",
        "model_id": run.run_id,
        "model_name": run.base_model,
        "is_lora": True,
        "lora_rank": run.lora_rank,
        "optimizer_config": {"type": "adamw"},
        "model_data": {
            "arch": model.architecture,
            "model_name": run.base_model,
            "tokenizer_id": model.tokenizer,
        },
    }


@router.get("/models")
async def list_models(services: Ready, owner: Owner, limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
    """The caller's runs in sessions that are open and were heard of lately, newest first.

    `loaded` are those that a worker holds in memory; the others are rebuilt with their next operation.
    """
    window, since = Window(limit, offset), services.heard_since
    page = await services.database.transaction(lambda c: listings.live_runs(c, owner, since, window))
    models = [resources.model(run, loaded=services.dispatcher.has(run.run_id)) for run in page.rows]
    return {"models": models, "cursor": resources.cursor(page, window)}


@router.delete("/models/{model_id}")
async def free_model(model_id: str, services: Ready, owner: Owner) -> dict[str, str]:
    """Free a run's memory once it has nothing to do. Nothing is lost: its next operation has it rebuilt."""
    run = await services.database.transaction(lambda c: access.run(c, model_id, owner))
    await services.dispatcher.release(run.run_id)
    return {"model_id": run.run_id, "type": "delete_model"}
