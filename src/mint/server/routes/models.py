"""Runs by the name of models: what they are, which are live, and how they let go of their memory."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection

from mint.server import access
from mint.server.dependencies import Owner, Ready
from mint.store import repository
from mint.store.schema import Run
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
async def list_models(services: Ready, owner: Owner) -> dict[str, Any]:
    """The caller's runs that are with an engine worker now."""
    live = services.dispatcher.live()

    def find(connection: Connection) -> list[Run]:
        found = (repository.find(connection, Run, run_id=run_id) for run_id in live)
        return [run for run in found if run is not None and run.owner == owner]

    runs = await services.database.transaction(find)
    return {"models": [_live(run) for run in runs]}


def _live(run: Run) -> dict[str, Any]:
    facts = {"model_id": run.run_id, "base_model": run.base_model, "lora_rank": run.lora_rank}
    return {**facts, "user_metadata": run.user_metadata}


@router.delete("/models/{model_id}")
async def delete_model(model_id: str, services: Ready, owner: Owner) -> dict[str, str]:
    """Free a run's place in the engine, once it has nothing more to do. What it saved stays."""
    await services.database.transaction(lambda c: access.run(c, model_id, owner))
    await services.dispatcher.release(model_id)
    return {"model_id": model_id, "type": "delete_model"}
