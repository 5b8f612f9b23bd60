"""JSON requests of the Tinker protocol.

Unknown fields are ignored, since each SDK version adds some; defaults are the SDK's, since older versions
send only what the user set. Field names and types are the protocol's, not ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from mint.wire.documents import is_text

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
SequenceNumber = Annotated[int, Field(ge=0, lt=1 << 63)]
CheckpointName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.=+-]*$")
]
TtlSeconds = Annotated[int, Field(ge=3600, le=3660 * 86400)]
"""From an hour to ten years, as the protocol has it."""
StoredText = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""U+0000 is no text to PostgreSQL."""
Metadata = Annotated[dict[StoredText, StoredText], Field(max_length=1000)]
"""What a user notes beside an object; text to text, which is all that the SDK reads back."""
ProjectId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
FLOAT32_MAX = 3.4028234663852886e38
"""The optimizer's arithmetic is float32: what is finite must be so there."""
NotNegative = Annotated[float, Field(strict=True, ge=0, le=FLOAT32_MAX, allow_inf_nan=False)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]


TokensEach = Annotated[int, Field(ge=0, le=1024)]
"""How many tokens to tell of at each position."""


class WireModel(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if not all(is_text(part) for part in parts if isinstance(part, str)):
            raise ValueError("has half a surrogate pair, which is no character")
        return value


# --- bootstrap and sessions ---------------------------------------------------------------------------------


class ClientConfigRequest(WireModel):
    """First request of every client."""

    sdk_version: str | None = None


class CreateSessionRequest(WireModel):
    """A session groups the runs and samplers of one client process."""

    tags: list[str] = []
    user_metadata: Metadata | None = None
    sdk_version: str | None = None
    project_id: ProjectId | None = None
    display_name: str | None = None


class HeartbeatRequest(WireModel):
    """Sent every ten seconds while the client lives."""

    session_id: str


EndedAs = Literal["success", "errored", "interrupted"]


class FinishReason(WireModel):
    """How the client's program ended."""

    type: EndedAs = "success"


class FinishSessionRequest(WireModel):
    """The client is done with its session."""

    reason: FinishReason = FinishReason()
    detail: str | None = None


class TelemetryRequest(WireModel):
    """Events of the SDK about itself."""

    events: list[dict[str, Any]] = []
    session_id: str | None = None
    sdk_version: str | None = None


# --- training -----------------------------------------------------------------------------------------------


class LoraConfig(WireModel):
    """Shape of a new LoRA."""

    rank: Annotated[int, Field(ge=1)]
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True
    train_vision: bool = False


class OptimizerConfig(WireModel):
    """Which optimizer a run has."""

    type: str = "adamw"


class CreateModelRequest(WireModel):
    """A new run on a base model."""

    session_id: str
    model_seq_id: Count
    base_model: str
    lora_config: LoraConfig
    optimizer_config: OptimizerConfig = OptimizerConfig()
    rollout_correction_config: dict[str, Any] | None = None
    user_metadata: Metadata | None = None


class CreateCustomLossRequest(WireModel):
    """A loss as a torch.fx graph: `inputs` [{name, rank}], `graph` {format, nodes: [{op, name, target, args, kwargs}]}.

    What they hold is checked where graphs are known.
    """

    session_id: str
    custom_loss_seq_id: Count
    name: str
    inputs: list[dict[str, Any]]
    graph: dict[str, Any]


class ModelRequest(WireModel):
    """Anything that names a run and nothing else."""

    model_id: str


class NumberedRequest(ModelRequest):
    """What all operations of a run have in common."""

    seq_id: SequenceNumber


class AdamParams(WireModel):
    """Settings of one AdamW step; a `grad_clip_norm` of 0 or less means no clipping.

    An `eps` that float32 has no use for is refused: a weight without gradient would be divided 0 by 0.
    """

    type: str = "adamw"
    learning_rate: NotNegative = 1e-4
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Annotated[float, Field(strict=True, ge=1e-38, le=FLOAT32_MAX, allow_inf_nan=False)] = 1e-12
    weight_decay: NotNegative = 0.0
    grad_clip_norm: Annotated[float, Field(strict=True, le=FLOAT32_MAX, allow_inf_nan=False)] = 0.0


class OptimizerParams(WireModel):
    """Settings of one step, as the SDK sends them: `optimizer_params` are those of another optimizer than AdamW."""

    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class OptimStepRequest(OptimizerParams):
    """Apply accumulated gradients."""

    model_id: str
    seq_id: SequenceNumber


class SaveWeightsRequest(WireModel):
    """Write a training checkpoint."""

    model_id: str
    path: CheckpointName
    seq_id: SequenceNumber
    ttl_seconds: TtlSeconds | None = None
    overwrite: bool = False
    user_metadata: Metadata | None = None


class SaveWeightsForSamplerRequest(WireModel):
    """Write a revision: named by `path`, or for one sampling session without a name."""

    model_id: str
    seq_id: SequenceNumber
    path: CheckpointName | None = None
    sampling_session_seq_id: Count | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: TtlSeconds | None = None
    user_metadata: Metadata | None = None


class SaveWeightsExternalRequest(WireModel):
    """Write the weights for download, encrypted to `age_encryption_recipients` where there are any."""

    model_id: str
    path: CheckpointName
    seq_id: SequenceNumber
    ttl_seconds: TtlSeconds | None = None
    user_metadata: Metadata | None = None
    age_encryption_recipients: Annotated[list[str], Field(max_length=10)] | None = None


class SaveAndCreateRequest(ModelRequest):
    """Write a revision and sample it, in one operation; with `name` it is a checkpoint.

    Without a `seq_id` it stands behind all that has come.
    """

    seq_id: SequenceNumber | None = None
    name: CheckpointName | None = None
    ttl_seconds: TtlSeconds | None = None
    user_metadata: Metadata | None = None


class LoadWeightsRequest(WireModel):
    """Load a checkpoint into a run (model_id and seq_id), or as a new run (session_id and model_seq_id).

    A new run keeps the rollout correction of the run that the checkpoint is of, unless the request has the field; null
    is no correction.
    """

    path: str
    optimizer: bool = False
    model_id: str | None = None
    seq_id: SequenceNumber | None = None
    session_id: str | None = None
    model_seq_id: Count | None = None
    base_model: str | None = None
    user_metadata: Metadata | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    rollout_correction_config: dict[str, Any] | None = None
    weights_access_token: str | None = None

    @property
    def in_place(self) -> bool:
        """Whether it loads into a run that exists."""
        return self.model_id is not None and self.seq_id is not None


# --- sampling -----------------------------------------------------------------------------------------------


class CreateSamplingSessionRequest(WireModel):
    """A sampler of a base model or of a saved revision."""

    session_id: str
    sampling_session_seq_id: Count
    base_model: str | None = None
    model_path: str | None = None


class CreateActionSessionRequest(WireModel):
    """A robot policy to act by: a base model or a saved revision."""

    session_id: str
    base_model: str | None = None
    model_path: str | None = None


class Chunk(WireModel):
    """A piece of a prompt, text or an image in base64. Older SDKs leave `type` out; then the fields tell."""

    type: str | None = None
    tokens: list[int] | None = None
    data: str | None = None
    format: str | None = None
    expected_tokens: int | None = None


class Prompt(WireModel):
    """A prompt as the SDK's ModelInput."""

    chunks: list[Chunk]


class SamplingParams(WireModel):
    """How to draw. `stop`: absent means the model's end tokens, an empty list means none."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0


class JoinSamplingSessionRequest(WireModel):
    """A copy of a sampling client, in another process, asks for a range of numbers of its own."""

    sampling_session_id: str


class SampleRequest(WireModel):
    """Draw continuations of a prompt from a sampling session; or without one, from a base model or a checkpoint.

    `target_prompt_logprobs` is TensorData; it is read where the prompt's length is known.
    """

    prompt: Prompt
    sampling_session_id: str | None = None
    base_model: str | None = None
    model_path: str | None = None
    sampling_params: SamplingParams = SamplingParams()
    num_samples: Annotated[int, Field(ge=1, le=1024)] = 1
    seq_id: SequenceNumber | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: TokensEach = 0
    topk_sample_logprobs: TokensEach = 0
    prompt_logprobs_last_n: Annotated[int, Field(ge=1)] | None = None
    prompt_alt_tokens_k: TokensEach = 0
    target_prompt_logprobs: Any = None


# --- futures ------------------------------------------------------------------------------------------------


class RetrieveFutureRequest(WireModel):
    """Ask for the result of an operation."""

    request_id: str
    allow_metadata_only: bool = False


class FuturesTarget(WireModel):
    """A sampling session, and which copy of its client."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: Count = 0


class RetrieveFuturesRequest(WireModel):
    """Ask which samples of a client have ended since a cursor; `timeout` in seconds, 0 for an answer at once."""

    target: FuturesTarget
    prev_cursor: Count = 0
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class CancelFutureRequest(WireModel):
    """Nobody waits for the result of a sample any more."""

    request_id: str
