"""Reading objects on behalf of someone: they must exist, be theirs, and be of an open session."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Connection

from mint.errors import BadRequestError, GoneError, NotFoundError, PermissionDeniedError
from mint.store import checkpoints, repository, weights_tokens
from mint.store.schema import Checkpoint, CheckpointKind, CustomLoss, Operation, Run, Sampler, Session
from mint.wire.paths import LEGACY_SCHEME, CheckpointPath, Segment

TOKEN_FIELD = "weights_access_token"

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
        BadRequestError: it holds a checkpoint and nothing else.
    """
    found = owned(repository.find(connection, Run, run_id=run_id), owner, "model_id", run_id)
    session(connection, found.session_id, owner)
    if found.copied:
        raise BadRequestError(
            f"{run_id} only holds weights that were copied or uploaded; load them into another run to train",
            field="model_id",
        )
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


def checkpoint(connection: Connection, path: str, owner: str, field: str, token: str | None = None) -> Checkpoint:
    """A checkpoint to read: theirs, published, or one that the access token `token` is for; and not expired.

    Raises:
        NotFoundError: there is no such checkpoint.
        PermissionDeniedError: it is none of theirs.
    """
    found = checkpoints.live(connection, path)
    if found is None or found.owner == owner or found.public or token is None:
        return found if found is not None and found.public else owned(found, owner, field, path)
    if not weights_tokens.opens(connection, token, found):
        raise PermissionDeniedError(f"does not let at {path}: it is another's, or has ended", field=TOKEN_FIELD)
    return found


def weights(connection: Connection, path: str, owner: str, field: str, token: str | None = None) -> Checkpoint:
    """A checkpoint to load or to sample; see `checkpoint`.

    Raises:
        BadRequestError: it is for download only.
    """
    found = checkpoint(connection, path, owner, field, token)
    if found.kind == CheckpointKind.EXTERNAL:
        raise BadRequestError(f"{path} is for download only; use the run's other checkpoints here", field=field)
    return found


def own_checkpoint(connection: Connection, path: str, owner: str) -> Checkpoint:
    """A checkpoint to change, which has not expired."""
    return owned(checkpoints.live(connection, path), owner, "checkpoint_id", path)


def sample_source(
    connection: Connection, base_model: str | None, model_path: str | None, owner: str
) -> tuple[str, str | None, str | None]:
    """Base model, path and folder of what is to be sampled: a base model or a checkpoint.

    Raises:
        BadRequestError: neither is given, or the checkpoint is of another base model or for download only.
    """
    if model_path is None:
        if base_model is None:
            raise BadRequestError("give a base_model or a model_path", field="base_model")
        return base_model, None, None
    path = str(CheckpointPath.parse(canonical(connection, model_path, "sampler_weights"), "model_path"))
    found = weights(connection, path, owner, "model_path")
    if base_model is not None and base_model != found.base_model:
        raise BadRequestError(f"is {base_model!r}, but {path} was trained on {found.base_model!r}", field="base_model")
    return found.base_model, path, found.directory


def canonical(connection: Connection, text: str, first: Segment) -> str:
    """A path of today for one of old, `mint://<run>/<name>`, which did not say what kind of checkpoint it is.

    That is the one that is there, of two the one in the segment `first`. Any other text is left as it is.
    """
    run_id, _, name = text.removeprefix(LEGACY_SCHEME).partition("/")
    if not text.startswith(LEGACY_SCHEME) or not run_id or not name or "/" in name:
        return text
    segments: tuple[Segment, ...] = (first, "weights" if first == "sampler_weights" else "sampler_weights")
    paths = [str(CheckpointPath(run_id, segment, name)) for segment in segments]
    return next((path for path in paths if checkpoints.live(connection, path) is not None), paths[0])
