"""copy_weights: another name for a checkpoint's files, which are not copied.

The copy belongs to a run of its own that nothing else is done with. It is answered at once and is journaled as that
run's first operation, so that a retry finds it; without a session of the client's, one is made for the retry's key.
"""

from __future__ import annotations

import json
from dataclasses import replace
from secrets import token_hex
from time import time
from typing import Any

from sqlalchemy import Connection

from mint.errors import BadRequestError
from mint.server import access, limits
from mint.server.operations.answered import answered
from mint.server.operations.training import run_id_of
from mint.server.operations.weights import SHAPE_FIELDS
from mint.store import audit, checkpoints, journal, repository
from mint.store.keys import Key
from mint.store.schema import Checkpoint, Operation, Run, Session
from mint.wire.paths import CheckpointPath
from mint.wire.rest import CopyWeightsRequest

KIND = "copy_weights"


def copy_weights(
    connection: Connection, request: CopyWeightsRequest, idempotency_key: str | None, caller: Key
) -> dict[str, Any]:
    """Copy; or answer what the first try of the same call was answered.

    Raises:
        BadRequestError: the destination is not one, is taken, or the key was used for another copy.
        LimitExceededError: the caller has too many bytes already.
        MintError: the source is not there, or is not theirs to read.
    """
    in_session = request.session_id is not None and request.model_seq_id is not None
    if in_session == (request.destination_project_id is not None):
        raise BadRequestError(
            "give either destination_project_id, or session_id and model_seq_id", field="destination_project_id"
        )
    session, number = _destination(connection, request, idempotency_key, caller.owner)
    run_id = run_id_of(session.session_id, number)
    if (first := journal.known(connection, run_id, 0)) is not None:
        return _answer_again(first, request)
    path = str(CheckpointPath.parse(request.source_path, "source_path"))
    source = access.checkpoint(connection, path, caller.owner, "source_path")
    limits.check_stored_bytes(connection, caller)
    trained = repository.find(connection, Run, run_id=source.run_id)
    assert trained is not None
    return _copy(connection, request, source, _holder(source, trained, run_id, session))


def _destination(
    connection: Connection, request: CopyWeightsRequest, key: str | None, owner: str
) -> tuple[Session, int]:
    """The session that has the copy, and the run's number in it."""
    if request.session_id is not None and request.model_seq_id is not None:
        return access.session(connection, request.session_id, owner), request.model_seq_id
    now = time()
    session = Session(
        session_id=f"session-{token_hex(8)}",
        owner=owner,
        created_at=now,
        last_heartbeat=now,
        idempotency_key=f"{KIND}:{key}" if key is not None else None,
        project_id=request.destination_project_id,
        finished_at=now,
        finish_reason="success",
        finish_detail=f"holds a copy of {request.source_path}",
    )
    return repository.put_session(connection, session), 0


def _answer_again(first: Operation, request: CopyWeightsRequest) -> dict[str, Any]:
    if first.kind != KIND or first.facts["request"] != request.model_dump():
        raise BadRequestError(
            f"{first.stream} is there already, by another call; a number or an idempotency key names one copy",
            field="model_seq_id" if request.model_seq_id is not None else "X-Idempotency-Key",
        )
    assert first.result is not None
    answer: dict[str, Any] = json.loads(first.result)
    return answer


def _holder(source: Checkpoint, trained: Run, run_id: str, session: Session) -> Run:
    """The run that has the copy; what is trained from it has the rollout correction of the run that was `trained`."""
    return Run(
        run_id=run_id,
        session_id=session.session_id,
        owner=session.owner,
        base_model=source.base_model,
        **{name: getattr(source, name) for name in SHAPE_FIELDS},
        lora_seed=None,
        created_at=time(),
        rollout_correction=trained.rollout_correction,
        copied=True,
    )


def _copy(connection: Connection, request: CopyWeightsRequest, source: Checkpoint, run: Run) -> dict[str, Any]:
    assert source.path is not None
    path = str(replace(CheckpointPath.parse(source.path, "source_path"), run_id=run.run_id))
    copy = replace(
        source,
        checkpoint_id=f"copy-{token_hex(12)}",
        path=path,
        run_id=run.run_id,
        owner=run.owner,
        created_at=run.created_at,
        expires_at=run.created_at + request.ttl_seconds if request.ttl_seconds is not None else None,
        public=False,
    )
    answer = {"tinker_path": path}
    repository.insert(connection, run)
    checkpoints.put(connection, copy)
    facts = {"model": run.base_model, "request": request.model_dump()}
    journal.insert(connection, answered(KIND, (run.run_id, 0), run.owner, answer, facts))
    audit.record(connection, "checkpoint_copy", run.owner, path=path, source_path=source.path)
    return answer
