"""What clients ask before anything else: health, configuration, capabilities."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from mint.server.dependencies import AnyTime, Owner, Poller, Ready
from mint.wire.requests import ClientConfigRequest, TelemetryRequest

router = APIRouter(tags=["bootstrap"])

LATEST = 0, 38
"""The first version of the SDK that can have custom losses computed here, and copies of sampling clients numbered."""


@router.get("/healthz")
async def healthz(services: AnyTime) -> JSONResponse:
    """200 once every model is loaded and has a worker; 503 before, and while a worker starts again."""
    if services.started.is_set() and services.fleet.ready:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "starting", "detail": "models are being loaded"}, 503)


@router.post("/client/config")
async def client_config(request: ClientConfigRequest, services: AnyTime, _owner: Poller) -> dict[str, Any]:
    """Settings of the SDK.

    Its defaults suit this server, but that custom losses can be computed here, and that numbers which copies of a
    sampling client draw at random could be the same.
    """
    version = re.match(r"(\d{1,9})\.(\d{1,9})", request.sdk_version or "")
    latest = version is not None and (int(version[1]), int(version[2])) >= LATEST
    settings = {
        "custom_loss_server_side": latest,
        "sample_join_sampling_session": latest,
        "pjwt_auth_enabled": services.config.jwt_auth,
    }
    return {name: True for name, on in settings.items() if on}


@router.post("/client/dynamic_config")
async def dynamic_config(_request: ClientConfigRequest, _owner: Poller) -> dict[str, Any]:
    """Settings that the SDK asks for again and again: it shall tell of samples that nobody waits for any more."""
    return {"sample_cancel_enabled": True}


@router.post("/telemetry")
async def telemetry(_request: TelemetryRequest, _owner: Poller) -> dict[str, str]:
    """Events that the SDK reports about itself; they are received and not kept."""
    return {"status": "accepted"}


@router.get("/get_server_capabilities")
async def capabilities(services: Ready, _owner: Owner) -> dict[str, Any]:
    """The base models that can be trained and sampled."""
    return {
        "supported_models": [
            {
                "model_name": model.name,
                "max_context_length": model.max_context_length,
                "trainable": True,
                "sampleable": model.policy is None,
            }
            for model in services.fleet.models()
        ]
    }
