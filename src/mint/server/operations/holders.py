"""Runs that only hold a checkpoint, which none of them has saved: a copy, an upload, or a sum of others.

Where the client names no session, one is made, and is finished from the start. The checkpoint of a copy or an upload is
there when the request is answered; the request is journaled as the run's first operation, so that a retry finds its
answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from secrets import token_hex
from time import time
from typing import Any

from sqlalchemy import Connection

from mint.errors import BadRequestError, GoneError
from mint.server.operations.answered import answered
from mint.server.operations.weights import SHAPE_FIELDS
from mint.store import checkpoints, journal, repository
from mint.store.schema import Checkpoint, Run, Session


@dataclass(frozen=True)
class Request:
    """What is asked for: `kind` is the journal's word for it, `content` what a retry must repeat.

    `key` is the retry's `X-Idempotency-Key`, where it has one.
    """

    kind: str
    content: dict[str, Any]
    key: str | None


def put_session(connection: Connection, request: Request, owner: str, project_id: str | None, detail: str) -> Session:
    """A session for the run, or the one that the first try has made."""
    session = finished_session(f"session-{token_hex(8)}", owner, project_id, detail)
    key = f"{request.kind}:{request.key}" if request.key is not None else None
    return repository.put_session(connection, replace(session, idempotency_key=key))


def finished_session(session_id: str, owner: str, project_id: str | None, detail: str) -> Session:
    """One that nothing is done in, and that no client keeps alive."""
    now = time()
    return Session(
        session_id=session_id,
        owner=owner,
        created_at=now,
        last_heartbeat=now,
        project_id=project_id,
        finished_at=now,
        finish_reason="success",
        finish_detail=detail,
    )


def known_answer(connection: Connection, request: Request, run_id: str, field: str) -> dict[str, Any] | None:
    """What the first try of the same call was answered; None if there was none.

    Raises:
        BadRequestError: naming `field`; the run is there by another call.
        GoneError: it was made so long ago that the answer is forgotten.
    """
    first = journal.known(connection, run_id, 0)
    if first is None:
        if repository.find(connection, Run, run_id=run_id) is not None:
            raise GoneError(f"{run_id} was made before, and the answer is forgotten", field=field)
        return None
    if first.kind != request.kind or first.facts["request"] != request.content:
        raise BadRequestError(
            f"{run_id} is there already, by another call; a number or an idempotency key names one call", field=field
        )
    assert first.result is not None
    answer: dict[str, Any] = json.loads(first.result)
    return answer


def hold(
    connection: Connection,
    request: Request,
    checkpoint: Checkpoint,
    session: Session,
    answer: dict[str, Any],
    rollout_correction: dict[str, Any] | None = None,
) -> None:
    """Add the checkpoint's run, the checkpoint, and the operation that made them."""
    run = replace(holding_run(checkpoint, session.session_id), rollout_correction=rollout_correction)
    repository.insert(connection, run)
    checkpoints.put(connection, checkpoint)
    facts = {"model": run.base_model, "request": request.content}
    journal.insert(connection, answered(request.kind, (run.run_id, 0), run.owner, answer, facts))


def holding_run(checkpoint: Checkpoint, session_id: str) -> Run:
    """The run of a checkpoint that none has saved."""
    return Run(
        run_id=checkpoint.run_id,
        session_id=session_id,
        owner=checkpoint.owner,
        base_model=checkpoint.base_model,
        **{name: getattr(checkpoint, name) for name in SHAPE_FIELDS},
        lora_seed=None,
        created_at=checkpoint.created_at,
        copied=True,
    )
