"""Rows as the REST routes answer them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mint.store.listings import Page, RunView, Window
from mint.store.schema import Checkpoint, Run
from mint.store.search import SessionView
from mint.wire.paths import CheckpointPath

DEFAULT_PROJECT = "default"
"""Of sessions that name none."""


def timestamp(seconds: float) -> str:
    """A time of the database, as text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def cursor(page: Page[Any], window: Window) -> dict[str, int]:
    """Where in its list a page is."""
    return {"offset": window.offset, "limit": window.limit, "total_count": page.total}


def checkpoint(row: Checkpoint) -> dict[str, Any]:
    """A named checkpoint."""
    assert row.path is not None
    path = CheckpointPath.parse(row.path, "path")
    return {
        "checkpoint_id": f"{path.segment}/{path.name}",
        "checkpoint_type": row.kind,
        "time": timestamp(row.created_at),
        "tinker_path": row.path,
        "size_bytes": row.size_bytes,
        "public": row.public,
        "user_metadata": row.user_metadata,
        "expires_at": timestamp(row.expires_at) if row.expires_at is not None else None,
    }


def training_run(view: RunView) -> dict[str, Any]:
    """A run and what has become of it."""
    run, newest, sampler = view.run, view.last_checkpoint, view.last_sampler_checkpoint
    return {
        "training_run_id": run.run_id,
        "base_model": run.base_model,
        "model_owner": run.owner,
        "is_lora": True,
        "lora_rank": run.lora_rank,
        "corrupted": not view.created,
        "last_request_time": timestamp(view.last_request_at),
        "last_checkpoint": checkpoint(newest) if newest is not None else None,
        "last_sampler_checkpoint": checkpoint(sampler) if sampler is not None else None,
        "user_metadata": run.user_metadata,
    }


def model(run: Run, *, loaded: bool) -> dict[str, Any]:
    """A live run."""
    return {
        "model_id": run.run_id,
        "base_model": run.base_model,
        "lora_rank": run.lora_rank,
        "session_id": run.session_id,
        "created_at": timestamp(run.created_at),
        "user_metadata": run.user_metadata,
        "loaded": loaded,
    }


def session_summary(view: SessionView) -> dict[str, Any]:
    """A session as search finds it."""
    session = view.session
    return {
        "session_id": session.session_id,
        "created_at": timestamp(session.created_at),
        "owner": session.owner,
        "project_id": session.project_id,
        "status": _status(view),
        "checkpoints_count": view.checkpoints_count,
        "checkpoint_storage_bytes": view.size_bytes,
        "display_name": session.display_name,
        "user_metadata": session.user_metadata,
    }


def _status(view: SessionView) -> dict[str, Any] | None:
    """None for a session that has neither ended nor been heard of lately."""
    session = view.session
    if session.finished_at is not None:
        reason = {"type": session.finish_reason}
        return {"type": "client_finished", "reason": reason, "detail": session.finish_detail}
    return {"type": "active"} if view.is_live else None
