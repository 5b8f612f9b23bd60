"""Rows to store, with everything filled in that a test does not care about."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from mint.store import repository
from mint.store.schema import Checkpoint, Operation, Run, Sampler, Session, Status


def session(**fields: Any) -> Session:
    return Session(**{"session_id": "s", "owner": "me", "created_at": 1.0, "last_heartbeat": 1.0, **fields})


def run(**fields: Any) -> Run:
    shape = {"lora_rank": 4, "lora_seed": 0, "train_attn": True, "train_mlp": True, "train_unembed": False}
    names = {"run_id": "s:train:0", "session_id": "s", "owner": "me", "base_model": "base", "created_at": 1.0}
    return Run(**{**names, **shape, **fields})


def checkpoint(**fields: Any) -> Checkpoint:
    shape = {"lora_rank": 4, "train_attn": True, "train_mlp": True, "train_unembed": False}
    names = {
        "checkpoint_id": "c1",
        "path": "tinker://s:train:0/weights/a",
        "kind": "training",
        "run_id": "s:train:0",
        "owner": "me",
    }
    rest = {"base_model": "base", "directory": "c1", "size_bytes": 10, "created_at": 1.0}
    return Checkpoint(**{**names, **shape, **rest, **fields})


def sampler(**fields: Any) -> Sampler:
    names = {"sampler_id": "s:sample:0", "session_id": "s", "session_seq_id": 0, "owner": "me"}
    return Sampler(**{**names, "base_model": "base", "created_at": 1.0, **fields})


def operation(**fields: Any) -> Operation:
    names = {"request_id": "r1", "stream": "s:train:0", "seq_id": 1, "owner": "me", "kind": "optim_step"}
    content = {"status": Status.PENDING, "payload_type": "application/json", "payload": b"{}", "facts": {"model": "b"}}
    return Operation(**{**names, **content, "created_at": 1.0, **fields})


def insert_run(connection: Connection) -> None:
    repository.insert(connection, session())
    repository.insert(connection, run())
