"""Weights access tokens: each lets its bearer read one checkpoint, whoever they are.

A token belongs to what its checkpoint holds: with the checkpoint, or when another is saved in its place, it ends. It is
kept as the SHA-256 of its secret, as keys are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from secrets import token_urlsafe
from time import time

from sqlalchemy import ColumnElement, Connection, delete, or_, select

from mint.store.schema import Checkpoint, weights_tokens

PREFIX = "tml-weights-"
"""The SDK takes what begins with `tml-` for a credential, and older ones send it as a key."""


@dataclass(frozen=True)
class WeightsToken:
    """What is known of a token; times are seconds since the epoch."""

    token_id: int
    created_at: float
    expires_at: float | None


def create(connection: Connection, checkpoint: Checkpoint, expires_at: float | None) -> tuple[str, WeightsToken]:
    """Make a token for a checkpoint; returns its secret, which is not kept, and the rest."""
    secret, now = f"{PREFIX}{token_urlsafe(24)}", time()
    row = {"digest": _digest(secret), "checkpoint_id": checkpoint.checkpoint_id, "created_at": now}
    query = weights_tokens.insert().values(**row, expires_at=expires_at).returning(weights_tokens.c.token_id)
    return secret, WeightsToken(connection.execute(query).scalar_one(), now, expires_at)


def of_checkpoint(connection: Connection, checkpoint: Checkpoint) -> list[WeightsToken]:
    """The tokens that let at a checkpoint now, oldest first."""
    columns = (weights_tokens.c.token_id, weights_tokens.c.created_at, weights_tokens.c.expires_at)
    query = select(*columns).where(weights_tokens.c.checkpoint_id == checkpoint.checkpoint_id, _holds())
    return [WeightsToken(*row) for row in connection.execute(query.order_by(weights_tokens.c.token_id))]


def opens(connection: Connection, secret: str, checkpoint: Checkpoint) -> bool:
    """Whether this is the secret of a token that lets at a checkpoint now."""
    query = select(weights_tokens.c.token_id).where(weights_tokens.c.digest == _digest(secret), _holds())
    query = query.where(weights_tokens.c.checkpoint_id == checkpoint.checkpoint_id)
    return connection.execute(query).first() is not None


def revoke(connection: Connection, checkpoint: Checkpoint, token_id: int) -> bool:
    """End a token of a checkpoint for good; False if there is none of that id."""
    of_it = weights_tokens.c.checkpoint_id == checkpoint.checkpoint_id
    return connection.execute(delete(weights_tokens).where(weights_tokens.c.token_id == token_id, of_it)).rowcount == 1


def _holds() -> ColumnElement[bool]:
    return or_(weights_tokens.c.expires_at.is_(None), weights_tokens.c.expires_at > time())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
