"""Reading objects on behalf of someone: they must exist, be theirs, and be of an open session."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Connection

from mint.errors import BadRequestError, GoneError, NotFoundError, PermissionDeniedError
from mint.store import checkpoints, repository
from mint.store.schema import Checkpoint, CustomLoss, Operation, Run, Sampler, Session
from mint.wire.paths import CheckpointPath

Owned = TypeVar("Owned", Session, Run, Sampler, Checkpoint, CustomLoss, Operation)


def owned(found: Owned | None, owner: str, field: str, name: str) -> Owned:
    """`found`, if it is there and theirs.

    Raises:
        NotFoundError: there is no such object.
        PermissionDeniedError: it is someone else's.
    """
    if found is None:
        raise NotFoundError(f"{name} does not exist", field=field)
    if found.owner != owner:
        raise PermissionDeniedError(f"{name} belongs to another API key", field=field)
    return found


def any_session(connection: Connection, session_id: str, owner: str) -> Session:
    """A session, also after its end."""
    return owned(repository.find(connection, Session, session_id=session_id), owner, "session_id", session_id)


def session(connection: Connection, session_id: str, owner: str) -> Session:
    """A session that is still open.

    Raises:
        GoneError: it has been finished.
    """
    found = any_session(connection, session_id, owner)
    if found.finished_at is not None:
        raise GoneError(f"session {session_id} was finished ({found.finish_reason})", field="session_id")
    return found


def run(connection: Connection, run_id: str, owner: str) -> Run:
    """A run of an open session.

    Raises:
        BadRequestError: it holds a copy of a checkpoint and nothing else.
    """
    found = owned(repository.find(connection, Run, run_id=run_id), owner, "model_id", run_id)
    session(connection, found.session_id, owner)
    if found.copied:
        raise BadRequestError(f"{run_id} holds copied weights; load them into another run to train", field="model_id")
    return found


def sampler(connection: Connection, sampler_id: str, owner: str) -> Sampler:
    """A sampling session."""
    found = repository.find(connection, Sampler, sampler_id=sampler_id)
    return owned(found, owner, "sampling_session_id", sampler_id)


def action_session(connection: Connection, action_session_id: str, owner: str) -> Sampler:
    """An action session, which is a sampler whose number the server has drawn."""
    found = repository.find(connection, Sampler, sampler_id=action_session_id)
    found = owned(found, owner, "action_session_id", action_session_id)
    if found.session_seq_id >= 0:
        raise NotFoundError(f"{action_session_id} is a sampling session", field="action_session_id")
    return found


def checkpoint(connection: Connection, path: str, owner: str, field: str) -> Checkpoint:
    """A checkpoint to read: theirs, or published, and not expired."""
    found = checkpoints.live(connection, path)
    return found if found is not None and found.public else owned(found, owner, field, path)


def own_checkpoint(connection: Connection, path: str, owner: str) -> Checkpoint:
    """A checkpoint to change, which has not expired."""
    return owned(checkpoints.live(connection, path), owner, "checkpoint_id", path)


def sample_source(
    connection: Connection, base_model: str | None, model_path: str | None, owner: str
) -> tuple[str, str | None, str | None]:
    """Base model, path and folder of what is to be sampled: a base model or a checkpoint.

    Raises:
        BadRequestError: neither is given, or the checkpoint is of another base model.
    """
    if model_path is None:
        if base_model is None:
            raise BadRequestError("give a base_model or a model_path", field="base_model")
        return base_model, None, None
    path = str(CheckpointPath.parse(model_path, "model_path"))
    found = checkpoint(connection, path, owner, "model_path")
    if base_model is not None and base_model != found.base_model:
        raise BadRequestError(f"is {base_model!r}, but {path} was trained on {found.base_model!r}", field="base_model")
    return found.base_model, path, found.directory
