"""copy_weights: another name for a checkpoint's files, which are not copied. See `holders`."""

from __future__ import annotations

from dataclasses import replace
from secrets import token_hex
from time import time
from typing import Any

from sqlalchemy import Connection

from mint.errors import BadRequestError
from mint.server import access, limits
from mint.server.operations.holders import Request, hold, known_answer, put_session
from mint.server.operations.training import run_id_of
from mint.store import audit, repository
from mint.store.keys import Key
from mint.store.schema import Checkpoint, Run, Session
from mint.wire.paths import CheckpointPath
from mint.wire.rest import CopyWeightsRequest

KIND = "copy_weights"


def copy_weights(
    connection: Connection, request: CopyWeightsRequest, idempotency_key: str | None, token: str | None, caller: Key
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
    asked = Request(KIND, request.model_dump(exclude={"weights_access_token"}), idempotency_key)
    session, number = _destination(connection, request, asked, caller.owner)
    run_id = run_id_of(session.session_id, number)
    field = "model_seq_id" if request.model_seq_id is not None else "X-Idempotency-Key"
    if (answer := known_answer(connection, asked, run_id, field)) is not None:
        return answer
    path = CheckpointPath.parse(access.canonical(connection, request.source_path, "weights"), "source_path")
    source = access.checkpoint(connection, str(path), caller.owner, "source_path", token)
    limits.check_stored_bytes(connection, caller)
    return _copy(connection, asked, request.ttl_seconds, source, run_id, session)


def _destination(
    connection: Connection, request: CopyWeightsRequest, asked: Request, owner: str
) -> tuple[Session, int]:
    """The session that has the copy, and the run's number in it."""
    if request.session_id is not None and request.model_seq_id is not None:
        return access.session(connection, request.session_id, owner), request.model_seq_id
    detail = f"holds a copy of {request.source_path}"
    return put_session(connection, asked, owner, request.destination_project_id, detail), 0


def _copy(
    connection: Connection, asked: Request, ttl: int | None, source: Checkpoint, run_id: str, session: Session
) -> dict[str, Any]:
    """What is trained from the copy has the rollout correction of the run that was trained."""
    assert source.path is not None
    trained = repository.find(connection, Run, run_id=source.run_id)
    assert trained is not None
    path, now = str(replace(CheckpointPath.parse(source.path, "source_path"), run_id=run_id)), time()
    copy = replace(
        source,
        checkpoint_id=f"copy-{token_hex(12)}",
        path=path,
        run_id=run_id,
        owner=session.owner,
        created_at=now,
        expires_at=now + ttl if ttl is not None else None,
        public=False,
    )
    answer = {"tinker_path": path}
    hold(connection, asked, copy, session, answer, trained.rollout_correction)
    audit.record(connection, "checkpoint_copy", session.owner, path=path, source_path=source.path)
    return answer
