"""For those who run the server: is it alive, does it serve, what does it do."""

from __future__ import annotations

import asyncio
import math
from time import time
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mint.observability.metrics import gauge, gauges_by
from mint.server.dependencies import Admin, AnyTime
from mint.server.services import Services
from mint.store import counts

router = APIRouter(tags=["health"])

DATABASE_SECONDS = 5.0
"""For the database to take a write."""


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers. Whether it serves is said by `/readyz`."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: AnyTime) -> JSONResponse:
    """200 while work is accepted: every model has a worker, the database can be written, nobody stops the server."""
    checks = {
        "models": services.started.is_set() and services.fleet.ready,
        "database": await _is_writable(services),
        "accepting": not services.draining,
    }
    ready = all(checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)


async def _is_writable(services: Services) -> bool:
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            await services.database.check_writable()
    except (SQLAlchemyError, TimeoutError):
        return False
    return True


@router.get("/metrics")
async def metrics(services: AnyTime, _admin: Admin) -> Response:
    """Prometheus's text format; Prometheus sends an admin's key as its bearer token."""
    since = services.heard_since
    readings = await services.database.transaction(lambda c: _readings(c, since))
    readings.append(gauge("mint_database_bytes", "Size of the database.", await services.database.size_bytes()))
    readings.append(
        gauge("mint_operations_under_way", "Operations that this process works on.", services.results.under_way)
    )
    readings += _models(services)
    return Response(services.metrics.exposition(readings), media_type=CONTENT_TYPE_LATEST)


def _models(services: Services) -> list[GaugeMetricFamily]:
    names = [model.name for model in services.fleet.models()]
    waiting, out = services.samples.waiting_by_model(), services.samples.out_by_model()
    up = {name: float(services.fleet.has_worker(name)) for name in names}
    return [
        gauges_by("mint_worker_up", "Whether a base model has a worker.", "model", up),
        gauges_by("mint_samples_waiting", "Sample requests in line.", "model", {name: waiting[name] for name in names}),
        gauges_by(
            "mint_samples_running", "Sample requests with a worker.", "model", {name: out[name] for name in names}
        ),
    ]


def _readings(connection: Connection, since: float) -> list[GaugeMetricFamily]:
    waiting: dict[str, Any] = counts.pending_by_kind(connection)
    sessions, runs = counts.open_sessions(connection, since), counts.live_runs(connection, None, since)
    stored, newest = counts.snapshot_state(connection)
    age = time() - newest if newest is not None else math.nan
    return [
        gauge("mint_snapshot_age_seconds", "Since the newest snapshot of a run; NaN if there is none.", age),
        gauge("mint_snapshot_bytes", "Of the snapshots that runs are recovered from.", stored),
        gauges_by("mint_queue_depth", "Journaled operations without a result.", "kind", waiting),
        gauge("mint_sessions", "Sessions that are open and were heard of lately.", sessions),
        gauge("mint_runs", "Runs of such sessions.", runs),
    ]
