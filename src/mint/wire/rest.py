"""Requests of the REST API: about sessions, runs and checkpoints that are there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mint.wire.requests import CheckpointName, Count, EndedAs, Metadata, ProjectId, TtlSeconds, WireModel


class CopyWeightsRequest(WireModel):
    """Another name for a checkpoint's weights, in a project, or as a run of a session."""

    source_path: str
    destination_project_id: ProjectId | None = None
    session_id: str | None = None
    model_seq_id: Count | None = None
    ttl_seconds: TtlSeconds | None = None
    weights_access_token: str | None = None


class UploadRequest(WireModel):
    """What is told beside an uploaded archive. `base_model` stands for what the adapter's configuration names."""

    name: CheckpointName = "uploaded"
    base_model: str | None = None
    project_id: ProjectId | None = None
    ttl_seconds: TtlSeconds | None = None


Coefficient = Annotated[float, Field(strict=True, allow_inf_nan=False)]
MAX_SOURCES = 64
OutputPath = Annotated[
    str,
    StringConstraints(
        max_length=512, pattern=r"^((tinker|mint)://[^/]+/sampler_weights/)?[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,127}$"
    ),
]


class InterpolateRequest(WireModel):
    """A checkpoint that is the weighted sum of others. `output_path` is a name, or a path in a run of one's own."""

    source_paths: Annotated[list[str], Field(min_length=1, max_length=MAX_SOURCES)]
    coefficients: Annotated[list[Coefficient], Field(min_length=1, max_length=MAX_SOURCES)]
    output_path: OutputPath | None = None
    output_checkpoint_type: Literal["sampler"] = "sampler"
    ttl_seconds: TtlSeconds | None = None
    user_metadata: Metadata | None = None


class TtlRequest(WireModel):
    """When a checkpoint shall expire, counted from now; None is never."""

    ttl_seconds: TtlSeconds | None = None


class WeightsInfoRequest(WireModel):
    """Ask what a checkpoint holds."""

    tinker_path: str


class ProjectRequest(WireModel):
    """Move a session to a project."""

    project_id: ProjectId


class SearchOwner(WireModel):
    """Whose sessions to search. Sessions are never shared, so that "accessible" ones are one's own."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Annotated[list[str], Field(min_length=1, max_length=10)] | None = None


class SearchStatus(WireModel):
    """A status to find; `reasons` narrows "client_finished" down."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: Annotated[list[EndedAs], Field(min_length=1)] | None = None


class SearchCursor(WireModel):
    """Where the next page starts. The time is the session's, and not needed to find it."""

    last_session_id: str


SearchKey = Annotated[str, StringConstraints(max_length=256, pattern=r'^[^"\\\x00]*$')]
"""Of metadata: what can be part of a JSON path."""


class SearchSessionsRequest(WireModel):
    """Find sessions: all that is given must match, but of `session_id` and `display_name` one is enough."""

    session_id: str | None = None
    project_ids: Annotated[list[str], Field(max_length=100)] | None = None
    user_metadata: Annotated[dict[SearchKey, str], Field(default_factory=dict, max_length=20)]
    display_name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256)] | None = None
    owner: SearchOwner = SearchOwner()
    statuses: Annotated[list[SearchStatus], Field(min_length=1, max_length=20)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: SearchCursor | None = None
