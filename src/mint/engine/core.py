"""The nouns that dispatch and engine share, and the `Worker` protocol between them.

Plain dataclasses and numpy arrays: nothing here knows of HTTP, SQL, owners or torch. A `Command` is what the
server side asks of an engine worker; each has one `Result` type. All of them can be pickled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mint.engine.loss_graph import LossGraph
from mint.engine.rollout_correction import RolloutCorrection

Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float32]
LossInput: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int64]

Uint8Array: TypeAlias = npt.NDArray[np.uint8]

StopReason = Literal["stop", "length"]


@dataclass(frozen=True)
class LoraSite:
    """A linear layer that a LoRA can adapt: `name` is its path in the base model, `kind` the flag that trains it."""

    name: str
    kind: Literal["attn", "mlp", "unembed"]
    in_features: int
    out_features: int


@dataclass(frozen=True)
class VisionInfo:
    """How a model takes an image: `size` × `size` pixels, which become `tokens_per_image` tokens."""

    size: int
    tokens_per_image: int


@dataclass(frozen=True)
class PolicyInfo:
    """What a robot policy acts with: chunks of `horizon` actions of `action_dim` numbers, written as FAST tokens.

    The folders have the text's `tokenizer.json`, and the codec's beside its `processor_config.json`.
    """

    horizon: int
    action_dim: int
    tokenizer_folder: Path
    codec_folder: Path


@dataclass(frozen=True)
class ModelInfo:
    """What a served base model is. Filled by the engine worker once it has loaded the model.

    `tokenizer` is what clients load it from: a folder of this machine, or a Hugging Face name. `stop_token_ids` end a
    sample when the request does not say where to stop. `max_sample_length` bounds prompt and sample together: the
    context, or what the key/value cache holds, whichever is less. A model with a `policy` acts instead of writing.
    """

    name: str
    tokenizer: str
    architecture: str
    vocab_size: int
    max_context_length: int
    max_sample_length: int
    stop_token_ids: tuple[int, ...]
    max_lora_rank: int
    num_parameters: int
    lora_sites: tuple[LoraSite, ...] = ()
    vision: VisionInfo | None = None
    policy: PolicyInfo | None = None

    @property
    def capacity(self) -> str:
        """What bounds a prompt and its sample, for refusals."""
        text = f"{self.name} can hold {self.max_sample_length} tokens here"
        if self.max_sample_length == self.max_context_length:
            return text
        return f"{text}, of a context of {self.max_context_length} (`mint serve --kv-cache-gib` gives it more memory)"


@dataclass(frozen=True)
class LoraShape:
    """Which linear layers a LoRA adapts and how: y = xW + (alpha / rank) · (xA)B.

    Hu et al., 2021, arXiv 2106.09685.

    `seed` is what A is drawn from; None for weights that were loaded.
    """

    rank: int
    seed: int | None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True
    alpha: float = 32.0

    @property
    def scale(self) -> float:
        """The factor in front of (xA)B."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdamParams:
    """One AdamW step (Loshchilov & Hutter, 2019, arXiv 1711.05101); `grad_clip_norm` 0 means no clipping."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class Image:
    """`pixels` uint8 RGB (size, size, 3), as the model takes them; `key` is a digest of these."""

    pixels: Uint8Array
    key: bytes


@dataclass(frozen=True)
class PlacedImage:
    """An image in a sequence: it stands in the place of `num_tokens` tokens from `start` on, whatever they are."""

    start: int
    num_tokens: int
    image: Image


@dataclass(frozen=True)
class Datum:
    """One training sequence: `tokens` int32 (N,) and the loss's inputs by name.

    Each is int64 or float32, of shape (N,); the targets and weights of cross_entropy may be (N, K), K targets for each
    position. The inputs of a custom loss may also be scalars, shape (). Fewer targets than tokens, (T,), are those of
    the last T positions.

    Attributes:
        blocks: int32 (N,), never falling: token i sees token j iff blocks[j] ≤ blocks[i]. None is causal.
    """

    tokens: Int32Array
    loss_inputs: dict[str, LossInput]
    images: tuple[PlacedImage, ...] = ()
    blocks: Int32Array | None = None


@dataclass(frozen=True)
class Constraint:
    """What the text of a sample must match: a JSON schema (as JSON text) or a regular expression.

    `field` is where the request has it, for refusals.
    """

    kind: Literal["json_schema", "regex"]
    text: str
    field: str = "response_format"


@dataclass(frozen=True)
class SamplingParams:
    """How to draw a sample. `temperature` 0 is greedy; `top_k` -1 and `top_p` 1 switch those filters off."""

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop_token_ids: frozenset[int] = frozenset()
    stop_bytes: tuple[bytes, ...] = ()
    constraint: Constraint | None = None


@dataclass(frozen=True)
class PromptQuery:
    """What is asked about a prompt of L tokens beside its continuation.

    Position t is the token at index t given those before it, so there is none for t = 0. Of the log-probabilities and
    the likeliest tokens only the `last` positions are wanted, of the others all.

    Attributes:
        last: positions 1 to L − 1 whose own log-probability is wanted, counted from the end; 0 is none of them.
        top: how many of the likeliest tokens, for the same positions.
        targets: int64 (L − 1, K): other tokens whose log-probability at positions 1 … L − 1 is wanted; −1 is none.
        alternatives: how many tokens to draw at each of those positions, with replacement, at the temperature of the
            request.
    """

    last: int = 0
    top: int = 0
    targets: Int64Array | None = None
    alternatives: int = 0


@dataclass(frozen=True)
class Revision:
    """Immutable adapter weights on disk in PEFT format; `key` never names two different contents."""

    key: str
    directory: Path


@dataclass(frozen=True)
class WeightedRevision:
    """Adapter weights on disk, and by what they are multiplied in a sum."""

    directory: Path
    coefficient: float


# --- commands -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateRun:
    """Make a run: a fresh LoRA and a fresh optimizer."""

    run_id: str
    lora: LoraShape


@dataclass(frozen=True)
class RestoreRun:
    """Make a run whose LoRA shape and weights, and on request optimizer, come from a checkpoint."""

    run_id: str
    directory: Path
    with_optimizer: bool


@dataclass(frozen=True)
class LoadState:
    """Replace the weights of a live run by a checkpoint's; without its optimizer, a fresh one starts."""

    run_id: str
    directory: Path
    with_optimizer: bool


@dataclass(frozen=True)
class ForwardBackward:
    """A pass over some datums; gradients are added to the run's, unless `forward_only`.

    `loss_graph` is what `loss_fn` "custom" computes; `rollout_correction` what the run corrects importance sampling by.
    The loss is the sum over all datums; with `is_mean`, whose weights have been made so, it is the mean of the datums'.
    """

    run_id: str
    data: tuple[Datum, ...]
    loss_fn: str
    loss_config: dict[str, float] = field(default_factory=dict)
    forward_only: bool = False
    loss_graph: LossGraph | None = None
    rollout_correction: RolloutCorrection | None = None
    is_mean: bool = False

    @property
    def num_tokens(self) -> int:
        """Positions in all datums."""
        return sum(len(datum.tokens) for datum in self.data)


@dataclass(frozen=True)
class OptimStep:
    """Apply the accumulated gradients and set them to zero."""

    run_id: str
    adam: AdamParams


@dataclass(frozen=True)
class TrainStep:
    """A pass and the optimizer step that applies it, as one command: both halves happen or neither."""

    forward_backward: ForwardBackward
    adam: AdamParams

    @property
    def run_id(self) -> str:
        """Of both halves."""
        return self.forward_backward.run_id


@dataclass(frozen=True)
class ReverseKLDatum:
    """A sequence as the student sees it and as the reference does; both end with the same N predicting positions.

    `student` int32 (S,), `reference` int32 (R,): the last N positions of each predict `targets` int64 (N,). `weights`
    float32 (N,).
    """

    student: Int32Array
    reference: Int32Array
    targets: Int64Array
    weights: FloatArray


@dataclass(frozen=True)
class ReverseKL:
    """Gradients of Σ w · KL(student ‖ reference), into the student run.

    Over the whole vocabulary, both distributions at `temperature`. `reference` is an adapter revision, or None for the
    base model.
    """

    run_id: str
    data: tuple[ReverseKLDatum, ...]
    reference: Revision | None
    temperature: float = 1.0


@dataclass(frozen=True)
class SaveState:
    """Write weights and optimizer to `directory`, which is made, or made empty, for it."""

    run_id: str
    directory: Path


@dataclass(frozen=True)
class Snapshot:
    """As `SaveState`, but what follows does not wait until the files are written; refused while there are gradients."""

    run_id: str
    directory: Path


@dataclass(frozen=True)
class ExportRevision:
    """Write the weights to `directory`, which is made, or made empty, for it, as the revision `key`."""

    run_id: str
    directory: Path
    key: str


@dataclass(frozen=True)
class UnloadRun:
    """Forget a run and free its memory."""

    run_id: str


@dataclass(frozen=True)
class Sample:
    """Draw `num_samples` continuations of `prompt` int32 (L,) from a revision; None is the base model.

    `top_logprobs`: how many of the likeliest tokens to tell at each drawn position. With `stream`, `Progress` comes
    before the answer. Of a `whole` prompt each token sees all others, also those behind it.
    """

    revision: Revision | None
    prompt: Int32Array
    num_samples: int
    params: SamplingParams
    query: PromptQuery = PromptQuery()
    top_logprobs: int = 0
    stream: bool = False
    images: tuple[PlacedImage, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class SampleBatch:
    """Several samples that one operation asks for; a worker is sent each by itself."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Interpolate:
    """Write the sum of weighted revisions to `directory`, which is made, or made empty, for it; of no run."""

    sources: tuple[WeightedRevision, ...]
    directory: Path


@dataclass(frozen=True)
class Cancel:
    """Give up the sample that was sent under the same number: its memory is free at once, and it has no answer."""


TrainingCommand: TypeAlias = (
    CreateRun
    | RestoreRun
    | LoadState
    | ForwardBackward
    | OptimStep
    | TrainStep
    | ReverseKL
    | SaveState
    | Snapshot
    | ExportRevision
    | UnloadRun
)
Command: TypeAlias = TrainingCommand | Sample | Interpolate | Cancel
Planned: TypeAlias = Command | SampleBatch
"""What an operation is carried out by."""


# --- results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunReady:
    """A run exists on the worker; `lora` is its shape, also when that came from a checkpoint."""

    lora: LoraShape


@dataclass(frozen=True)
class Passed:
    """`logprobs`: per datum, the log-probability of each target under the current weights, float32, shaped as they."""

    logprobs: tuple[FloatArray, ...]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Distilled:
    """The loss of each datum of a `ReverseKL`, and metrics."""

    losses: tuple[float, ...]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Stepped:
    """Metrics of an optimizer step."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Saved:
    """A folder was written and synced; `size_bytes` is the sum of its files."""

    size_bytes: int


@dataclass(frozen=True)
class Unloaded:
    """The run's memory is free."""


@dataclass(frozen=True)
class TopLogprobs:
    """The k likeliest tokens of n positions, or k that were drawn: `tokens` int32 (n, k), `logprobs` float32 (n, k).

    A place for which there is no token has −1 and −∞.
    """

    tokens: Int32Array
    logprobs: FloatArray


@dataclass(frozen=True)
class SampledSequence:
    """`tokens` int32 (n,) with `logprobs` float32 (n,), each of the distribution the token was drawn from.

    `top` has the likeliest tokens of the same distributions, where asked for.
    """

    tokens: Int32Array
    logprobs: FloatArray
    stop_reason: StopReason
    top: TopLogprobs | None = None


@dataclass(frozen=True)
class PromptAnswer:
    """What a `PromptQuery` asked for; None where it did not.

    Attributes:
        logprobs: float32 (L,), NaN where not asked for, and at index 0, which no token precedes.
        top: (L, top).
        targets: float32 (L − 1, K), NaN where the target is −1.
        alternatives: (L − 1, alternatives).
    """

    logprobs: FloatArray | None = None
    top: TopLogprobs | None = None
    targets: FloatArray | None = None
    alternatives: TopLogprobs | None = None


@dataclass(frozen=True)
class Sampled:
    """All sequences of a `Sample`; of its prompt, `cached_tokens` were not computed, as they had been before."""

    sequences: tuple[SampledSequence, ...]
    prompt: PromptAnswer = PromptAnswer()
    cached_tokens: int = 0


@dataclass(frozen=True)
class SampledBatch:
    """The results of a `SampleBatch`, in order."""

    results: tuple[Sampled, ...]


@dataclass(frozen=True)
class Progress:
    """What a streamed sample has drawn since the last one: by the sequence's index, tokens, log-probabilities, top."""

    drawn: dict[int, tuple[Int32Array, FloatArray, TopLogprobs | None]]


Result: TypeAlias = RunReady | Passed | Distilled | Stepped | Saved | Unloaded | Sampled | SampledBatch
OnProgress: TypeAlias = Callable[[Progress], None]


class Worker(Protocol):
    """An engine worker as the dispatcher sees it, wherever it runs.

    Commands of one run are executed in the order of the calls. `execute` raises the `MintError` a command
    failed with, or `WorkerDiedError` when the worker is gone and nothing is known of the command.
    """

    @property
    def info(self) -> ModelInfo:
        """The base model that this worker keeps resident."""
        ...

    def execute(self, command: Command, on_progress: OnProgress | None = None) -> Awaitable[Result]:
        """Queue a command at once; await its result. To cancel the result of a `Sample` is to cancel the sample.

        `on_progress` is called with what a streamed sample has drawn, before its result comes.
        """
        ...

    async def close(self) -> None:
        """Stop the worker and free its device."""
        ...


class WorkerDiedError(Exception):
    """The worker process ended with commands in flight."""
