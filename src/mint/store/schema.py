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
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    and_,
    cast,
    false,
    func,
    true,
)

metadata = MetaData()


class Status(StrEnum):
    """Of an operation."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Session:
    """One client process; times are seconds since the epoch.

    A forgotten one has nothing left but runs that hold checkpoints.
    """

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
    forgotten_at: float | None = None


sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("owner", String, nullable=False),
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
    Column("forgotten_at", Float),
    UniqueConstraint("owner", "idempotency_key"),
    Index("sessions_listed", "owner", "created_at", "session_id"),
    Index("sessions_of_project", "owner", "project_id", "created_at", "session_id"),
)
forgotten = sessions.c.forgotten_at.is_not(None)
remembered = sessions.c.forgotten_at.is_(None)
Index("sessions_forgotten", sessions.c.forgotten_at, sqlite_where=forgotten, postgresql_where=forgotten)
Index("sessions_remembered", sessions.c.last_heartbeat, sqlite_where=remembered, postgresql_where=remembered)


@dataclass(frozen=True)
class Run:
    """A training run: a mutable LoRA on a base model; `lora_seed` is None for one that began with a checkpoint.

    `rollout_correction` is the configuration that came with it. A `copied` run only holds a copy of a checkpoint.
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
    copied: bool = False


runs = Table(
    "runs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id"), nullable=False, index=True),
    Column("owner", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("lora_rank", Integer, nullable=False),
    Column("lora_seed", BigInteger),
    Column("train_attn", Boolean, nullable=False),
    Column("train_mlp", Boolean, nullable=False),
    Column("train_unembed", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("user_metadata", JSON),
    Column("rollout_correction", JSON),
    Column("copied", Boolean, nullable=False, server_default=false()),
    Index("runs_listed", "owner", "created_at", "run_id"),
)


class CheckpointKind(StrEnum):
    """Training checkpoints have the optimizer's state, samplers' weights alone; external ones are for download only."""

    TRAINING = "training"
    SAMPLER = "sampler"
    EXTERNAL = "external"


@dataclass(frozen=True)
class Checkpoint:
    """A name of committed weights. `path` is None for a revision that only sampling sessions have.

    Such a revision lives and dies with its session, `session_id`. `directory` is relative to the checkpoint folder. It
    is never used again for other contents, so that it also serves as the key of the revision; several rows name the
    same one where weights were copied. A `public` checkpoint can be read with any key.
    """

    checkpoint_id: str
    path: str | None
    kind: CheckpointKind
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
    public: bool = False


checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", String, primary_key=True),
    Column("path", String, unique=True),
    Column("kind", String, nullable=False),
    Column("run_id", String, ForeignKey("runs.run_id"), nullable=False),
    Column("owner", String, nullable=False),
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
    Column("public", Boolean, nullable=False, server_default=false()),
    Index("checkpoints_of_run", "run_id", "kind", "created_at"),
    Index("checkpoints_by_directory", "directory"),
    Index("checkpoints_stored", "owner", "directory", "size_bytes"),
)


def _partial(name: str, where: ColumnElement[bool], *columns: str) -> Index:
    """An index of some of the checkpoints; a query that says `where` in the same words can use it."""
    return Index(name, *(checkpoints.c[column] for column in columns), sqlite_where=where, postgresql_where=where)


def heard_of(since: float) -> ColumnElement[bool]:
    """Whether a session is open and its client was heard of since then, in Unix seconds."""
    return and_(sessions.c.finished_at.is_(None), sessions.c.last_heartbeat >= since)


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """A sum, 0 of nothing. PostgreSQL's of large integers is a decimal number."""
    return cast(func.coalesce(func.sum(column), 0), BigInteger)


named = checkpoints.c.path.is_not(None)
published = checkpoints.c.public == true()
expiring = checkpoints.c.expires_at.is_not(None)
# with all that a list is counted by, so that rows need not be read for it
_partial("checkpoints_listed", named, "owner", "created_at", "path", "expires_at")
_partial("checkpoints_published", published, "run_id")
_partial("checkpoints_expiring", expiring, "expires_at")
_partial("checkpoints_expiring_of_owner", and_(named, expiring), "owner", "expires_at")


named_checkpoints = Table(
    "named_checkpoints",
    metadata,
    Column("owner", String, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
"""How many named checkpoints each owner has, kept with them: to count them takes as long as there are many."""

discarded = Table(
    "discarded_folders",
    metadata,
    Column("directory", String, primary_key=True),
    Column("discarded_at", Float, nullable=False),
)
"""Folders whose last name is gone. Their files go when nobody reads them any more, and then the row."""


weights_tokens = Table(
    "weights_tokens",
    metadata,
    Column("token_id", Integer, primary_key=True),
    Column("digest", String, nullable=False, unique=True),
    Column("checkpoint_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Index("weights_tokens_of_checkpoint", "checkpoint_id"),
)
"""See `mint.store.weights_tokens`. Rows go with their checkpoint."""


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
    Column("directory", String, index=True),
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
    same whatever has changed; `directory` is the checkpoint folder among them, which it keeps from being deleted. What
    is never carried out, a refused request or an uploaded loss, has none of these; what lies before a snapshot is never
    carried out again, and lets go of its payload and its folder.
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
    directory: str | None = None

    @property
    def session_id(self) -> str | None:
        """The session it belongs to, if it does to one: the ids of runs and samplers begin with their session's."""
        session_id, separator, _ = self.stream.partition(":")
        return session_id if separator else None

    @property
    def client(self) -> str:
        """By what its client is known to be there: the session's signs of life, or the polls for this very result."""
        return self.session_id or self.request_id


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
    Column("directory", String),
    UniqueConstraint("stream", "seq_id"),
    Index("operations_by_status", "status"),
)
unnumbered = Table(
    "unnumbered",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("stream", String, nullable=False),
    Column("after", BigInteger, nullable=False),
    Column("retry_key", String),
    Index("unnumbered_of_stream", "stream", "after"),
    Index("unnumbered_by_key", "stream", "retry_key", unique=True),
)
"""Operations of runs that came without a number, and the client's number that each stands behind.

They go with their session: an operation that is forgotten earlier still counts.
"""

_reads_a_folder = operations.c.directory.is_not(None)
Index(
    "operations_by_directory",
    operations.c.directory,
    operations.c.status,
    operations.c.kind,
    sqlite_where=_reads_a_folder,
    postgresql_where=_reads_a_folder,
)
ended = operations.c.finished_at.is_not(None)
Index("operations_ended", operations.c.finished_at, sqlite_where=ended, postgresql_where=ended)


deployment = Table(
    "deployment",
    metadata,
    Column("deployment_id", String, primary_key=True),
    Column("server_id", String, nullable=False),
)
"""One row: what the folders that this database knows are marked with, and the server that began to work on it last."""
