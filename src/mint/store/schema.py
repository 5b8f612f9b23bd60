"""The tables, and each row as a frozen dataclass with the column names as fields."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()


class Status(StrEnum):
    """Of an operation."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Session:
    """One client process; times are seconds since the epoch."""

    session_id: str
    owner: str
    created_at: float
    last_heartbeat: float
    idempotency_key: str | None = None
    sdk_version: str | None = None
    project_id: str | None = None
    display_name: str | None = None
    tags: list[str] | None = None
    user_metadata: dict[str, Any] | None = None
    finished_at: float | None = None
    finish_reason: str | None = None
    finish_detail: str | None = None


sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("last_heartbeat", Float, nullable=False),
    Column("idempotency_key", String),
    Column("sdk_version", String),
    Column("project_id", String),
    Column("display_name", String),
    Column("tags", JSON),
    Column("user_metadata", JSON),
    Column("finished_at", Float),
    Column("finish_reason", String),
    Column("finish_detail", String),
    UniqueConstraint("owner", "idempotency_key"),
)


@dataclass(frozen=True)
class Run:
    """A training run: a mutable LoRA on a base model; `lora_seed` is None for one that began with a checkpoint.

    `rollout_correction` is the configuration that came with it.
    """

    run_id: str
    session_id: str
    owner: str
    base_model: str
    lora_rank: int
    lora_seed: int | None
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    created_at: float
    user_metadata: dict[str, Any] | None = None
    rollout_correction: dict[str, Any] | None = None


runs = Table(
    "runs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id"), nullable=False, index=True),
    Column("owner", String, nullable=False, index=True),
    Column("base_model", String, nullable=False),
    Column("lora_rank", Integer, nullable=False),
    Column("lora_seed", BigInteger),
    Column("train_attn", Boolean, nullable=False),
    Column("train_mlp", Boolean, nullable=False),
    Column("train_unembed", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("user_metadata", JSON),
    Column("rollout_correction", JSON),
)


@dataclass(frozen=True)
class Checkpoint:
    """Committed weights. `path` is None for a revision that only sampling sessions name, or whose name was taken over.

    A revision that never had a name lives and dies with its session, `session_id`. `directory` is relative to the
    checkpoint folder and never used again for other contents, so that it also serves as the key of the revision.
    """

    checkpoint_id: str
    path: str | None
    run_id: str
    owner: str
    base_model: str
    lora_rank: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    directory: str
    size_bytes: int
    created_at: float
    expires_at: float | None = None
    user_metadata: dict[str, Any] | None = None
    session_id: str | None = None


checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", String, primary_key=True),
    Column("path", String, unique=True),
    Column("run_id", String, ForeignKey("runs.run_id"), nullable=False, index=True),
    Column("owner", String, nullable=False, index=True),
    Column("base_model", String, nullable=False),
    Column("lora_rank", Integer, nullable=False),
    Column("train_attn", Boolean, nullable=False),
    Column("train_mlp", Boolean, nullable=False),
    Column("train_unembed", Boolean, nullable=False),
    Column("directory", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("user_metadata", JSON),
    Column("session_id", String, index=True),
)


@dataclass(frozen=True)
class Sampler:
    """A sampling session: a base model, or with `directory` a revision on it.

    An inflight one follows the revisions of a run, `inflight_run_id`: `inflight_seq_id` is the number of the save that
    made the one it has now. `num_clones` counts the copies of the client that have joined.
    """

    sampler_id: str
    session_id: str
    session_seq_id: int
    owner: str
    base_model: str
    created_at: float
    model_path: str | None = None
    directory: str | None = None
    inflight_run_id: str | None = None
    inflight_seq_id: int | None = None
    num_clones: int = 0


samplers = Table(
    "samplers",
    metadata,
    Column("sampler_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id"), nullable=False),
    Column("session_seq_id", BigInteger, nullable=False),
    Column("owner", String, nullable=False, index=True),
    Column("base_model", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("model_path", String),
    Column("directory", String),
    Column("inflight_run_id", String, index=True),
    Column("inflight_seq_id", BigInteger),
    Column("num_clones", Integer, nullable=False, server_default="0"),
    UniqueConstraint("session_id", "session_seq_id"),
)


@dataclass(frozen=True)
class CustomLoss:
    """An uploaded loss: `graph` has what it computes, {format, inputs, nodes}, which has been checked."""

    loss_id: str
    session_id: str
    owner: str
    name: str
    graph: dict[str, Any]
    created_at: float


custom_losses = Table(
    "custom_losses",
    metadata,
    Column("loss_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id"), nullable=False),
    Column("owner", String, nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("graph", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)


@dataclass(frozen=True)
class RunSnapshot:
    """The state of a run after operation `seq_id`; `directory` is relative to the folder of snapshots."""

    run_id: str
    seq_id: int
    directory: str
    size_bytes: int
    created_at: float


snapshots = Table(
    "snapshots",
    metadata,
    Column("run_id", String, ForeignKey("runs.run_id"), primary_key=True),
    Column("seq_id", BigInteger, nullable=False),
    Column("directory", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
)


@dataclass(frozen=True)
class Operation:
    """One journaled request and, once there is one, its result.

    `stream` and `seq_id` are the client's own numbering (a run, a sampling session, or the losses of a session,
    `<session>:loss`) and identify a retry; `payload` is the request body as it came, `payload_type` its content type.
    `facts` is what it referred to when it was accepted (base model, checkpoint folder, seed), so that a replay does the
    same whatever has changed. What is never carried out, a refused request or an uploaded loss, has neither; what lies
    before a snapshot is never carried out again, and its payload is dropped.
    """

    request_id: str
    stream: str
    seq_id: int
    owner: str
    kind: str
    status: Status
    payload_type: str
    payload: bytes
    facts: dict[str, Any]
    created_at: float
    result_type: str | None = None
    result: bytes | None = None
    finished_at: float | None = None

    @property
    def session_id(self) -> str | None:
        """The session it belongs to, if it does to one: the ids of runs and samplers begin with their session's."""
        session_id, separator, _ = self.stream.partition(":")
        return session_id if separator else None


operations = Table(
    "operations",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("stream", String, nullable=False),
    Column("seq_id", BigInteger, nullable=False),
    Column("owner", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("status", String, nullable=False),
    Column("payload_type", String, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("result_type", String),
    Column("result", LargeBinary),
    Column("finished_at", Float),
    UniqueConstraint("stream", "seq_id"),
    Index("operations_by_status", "status"),
)
