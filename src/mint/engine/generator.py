"""Generation: requests join and leave the running batch at every step.

A step is either a prefill of waiting prompts or one token for every running sequence. The samples of one
prompt are prefilled once and share the blocks that the prompt fills. Memory is reserved for a sequence's
whole length when it is admitted, so a running sequence never has to stop for want of a block.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mint.config import EngineConfig
from mint.engine.adapters import Adapter
from mint.engine.core import FloatArray, Int32Array, PromptAnswer, Sample, Sampled, SampledSequence, StopReason
from mint.engine.kv_cache import BlockAllocator, DecodePlan, KVCache, PrefillPlan
from mint.engine.packing import adapter_segments, pack, packing_order
from mint.engine.sampling import draw, uniform
from mint.errors import BadRequestError, MintError
from mint.models.causal_lm import CausalLM
from mint.models.logprobs import Pairs
from mint.models.segments import Segment


@dataclass
class Request:
    """A sample request on its way: how many of its sequences were admitted, and what has come of them."""

    number: int
    command: Sample
    adapter: Adapter | None
    num_admitted: int = 0
    finished: dict[int, SampledSequence] = field(default_factory=dict)
    error: MintError | None = None
    prompt_logprobs: FloatArray | None = None

    @property
    def tokens(self) -> Int32Array:
        """The prompt."""
        return self.command.prompt

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted."""
        return self.command.num_samples - self.num_admitted

    @property
    def answer(self) -> Sampled | MintError | None:
        """All sequences, in order, or what went wrong; None while sequences are missing."""
        if self.error is not None:
            return self.error
        if len(self.finished) < self.command.num_samples:
            return None
        sequences = tuple(self.finished[i] for i in range(self.command.num_samples))
        return Sampled(sequences, PromptAnswer(self.prompt_logprobs))


@dataclass
class SampleState:
    """One sample in progress. `tail`: the last bytes of its text, as far back as a stop string reaches."""

    request: Request
    index: int
    blocks: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tail: bytes = b""

    @property
    def length(self) -> int:
        """Tokens of prompt and sample."""
        return len(self.request.tokens) + len(self.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be drawn for it."""
        return self.request.error is not None or self.index in self.request.finished


class Generator:
    """All samples in progress on one base model.

    Args:
        token_bytes: the bytes of each token of the vocabulary, for stop strings.
    """

    def __init__(self, model: CausalLM, config: EngineConfig, token_bytes: Sequence[bytes]) -> None:
        self._model = model
        self._token_bytes = token_bytes
        self._max_batch_tokens = config.max_batch_tokens
        self._max_decode_batch = config.max_decode_batch
        self._cache = _make_cache(model, config)
        self._blocks = BlockAllocator(self._cache.num_blocks)
        self._waiting: deque[Request] = deque()
        self._running: list[SampleState] = []

    @property
    def capacity_tokens(self) -> int:
        """Longest prompt and sample together that the cache could hold."""
        return self._cache.num_blocks * self._cache.block_size

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._waiting or self._running)

    def add(self, number: int, command: Sample, adapter: Adapter | None) -> None:
        """Queue a request; `number` comes back with its result.

        Raises:
            BadRequestError: there is nothing to sample, or the cache could never hold it.
        """
        wanted = len(command.prompt) + command.params.max_tokens
        if min(len(command.prompt), command.num_samples, command.params.max_tokens) < 1:
            raise BadRequestError("a sample needs a prompt, num_samples and max_tokens of at least 1")
        if wanted > self.capacity_tokens:
            raise BadRequestError(
                f"prompt and max_tokens are {wanted} tokens together; this server's cache holds at most "
                f"{self.capacity_tokens}",
                field="sampling_params.max_tokens",
            )
        self._waiting.append(Request(number, command, adapter))

    def cancel(self, number: int) -> None:
        """Give up a request, if it is still under way; its blocks are free at once."""
        self._waiting = deque(request for request in self._waiting if request.number != number)
        for sequence in self._running:
            if sequence.request.number == number:
                self._blocks.release(sequence.blocks)
        self._running = [sequence for sequence in self._running if sequence.request.number != number]

    @torch.no_grad()
    def step(self) -> Iterator[tuple[int, Sampled | MintError]]:
        """Advance by one batch; yields the requests that this completes."""
        admitted = self._admit()
        self._prefill(admitted) if admitted else self._decode()
        ended = [sequence for sequence in self._running if sequence.ended]
        self._running = [sequence for sequence in self._running if not sequence.ended]
        for sequence in ended:
            self._blocks.release(sequence.blocks)
        for request in {sequence.request.number: sequence.request for sequence in ended}.values():
            answer = request.answer
            if answer is not None:
                self._forget(request)
                yield request.number, answer

    def _forget(self, request: Request) -> None:
        """A request that failed may have sequences that were never admitted: it is then first in line."""
        if self._waiting and self._waiting[0] is request:
            self._waiting.popleft()

    # --- admission ------------------------------------------------------------------------------------------

    def _admit(self) -> list[tuple[Request, list[SampleState]]]:
        """Take sequences from the head of the queue as long as tokens, places and blocks allow."""
        admitted: list[tuple[Request, list[SampleState]]] = []
        tokens, places = 0, self._max_decode_batch - len(self._running)
        while self._waiting and places > 0:
            request = self._waiting[0]
            tokens += len(request.tokens)
            count = min(places, request.num_waiting, self._num_that_fit(request))
            if count < 1 or (admitted and tokens > self._max_batch_tokens):
                break
            admitted.append((request, self._make_sequences(request, count)))
            places -= count
            if request.num_waiting == 0:
                self._waiting.popleft()
            else:
                break
        return admitted

    def _num_blocks(self, request: Request) -> tuple[int, int]:
        """Blocks that all samples of a request share, and blocks that each needs for itself."""
        size = self._cache.block_size
        total = -(-(len(request.tokens) + request.command.params.max_tokens) // size)
        shared = len(request.tokens) // size
        return shared, total - shared

    def _num_that_fit(self, request: Request) -> int:
        shared, own = self._num_blocks(request)
        return (self._blocks.num_free - shared) // own

    def _make_sequences(self, request: Request, count: int) -> list[SampleState]:
        num_shared, num_own = self._num_blocks(request)
        shared = self._blocks.take(num_shared)
        for _ in range(count - 1):
            self._blocks.hold(shared)
        first = request.num_admitted
        request.num_admitted += count
        own = [self._blocks.take(num_own) for _ in range(count)]
        self._cache.clear([block for blocks in own for block in blocks])
        return [SampleState(request, first + place, shared + blocks) for place, blocks in enumerate(own)]

    # --- steps ----------------------------------------------------------------------------------------------

    def _prefill(self, admitted: Sequence[tuple[Request, list[SampleState]]]) -> None:
        """Run the prompts of `admitted` and draw each sequence's first token."""
        sequences_of = {request.number: sequences for request, sequences in admitted}
        requests = packing_order([request for request, _ in admitted])
        batch = pack(requests, self._model.device)
        slots = np.concatenate([self._prompt_slots(sequences_of[r.number][0]) for r in requests])
        plan = PrefillPlan(self._cache, torch.from_numpy(slots).to(self._model.device), batch.plan)
        hidden = self._model.hidden_states(batch.tokens, batch.positions, plan, batch.segments)

        sequences, last_rows = [], []
        for request, rows in zip(requests, batch.rows, strict=True):
            if request.command.query.last and request.prompt_logprobs is None:
                request.prompt_logprobs = self._prompt_logprobs(request, hidden[rows[0] : rows[-1] + 1])
            for sequence in sequences_of[request.number]:
                self._share_partial_block(sequences_of[request.number][0], sequence)
                sequences.append(sequence)
                last_rows.append(int(rows[-1]))
        self._draw(sequences, hidden[torch.tensor(last_rows, device=hidden.device)])
        self._running.extend(sequences)

    def _decode(self) -> None:
        """One more token for every running sequence."""
        sequences = sorted(self._running, key=lambda s: id(s.request.adapter))
        device = self._model.device
        lengths = torch.tensor([s.length for s in sequences], device=device)
        width = -(-max(s.length for s in sequences) // self._cache.block_size)
        tables = torch.tensor([(s.blocks + s.blocks[:1] * width)[:width] for s in sequences], device=device)
        tokens = torch.tensor([s.tokens[-1] for s in sequences], device=device)
        plan = DecodePlan(self._cache, tables, lengths)
        hidden = self._model.hidden_states(tokens, lengths - 1, plan, _segments(sequences))
        self._draw(sequences, hidden)

    def _draw(self, sequences: Sequence[SampleState], hidden: Tensor) -> None:
        """Draw one token for each row of (B, E) hidden states and end the sequences that it completes."""
        params = [s.request.command.params for s in sequences]
        noise = uniform([p.seed for p in params], [s.index for s in sequences], [len(s.tokens) for s in sequences])
        logits = self._model.head.logits(hidden, _segments(sequences))
        tokens, logprobs = (t.tolist() for t in draw(logits, params, noise))
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            if not math.isfinite(logprob):
                sequence.request.error = BadRequestError(
                    "the logits are not finite: these weights have diverged, sample an earlier checkpoint"
                )
            reason = self._stop_reason(sequence, token)
            if reason is not None:
                sequence.request.finished[sequence.index] = SampledSequence(
                    np.array(sequence.tokens, np.int32), np.array(sequence.logprobs, np.float32), reason
                )

    def _stop_reason(self, sequence: SampleState, token: int) -> StopReason | None:
        params = sequence.request.command.params
        if token in params.stop_token_ids:
            return "stop"
        if params.stop_bytes:
            text = sequence.tail + self._token_bytes[token]
            if any(stop in text for stop in params.stop_bytes):
                return "stop"
            reach = max(len(stop) for stop in params.stop_bytes) - 1
            sequence.tail = text[max(0, len(text) - reach) :]
        return "length" if len(sequence.tokens) == params.max_tokens else None

    # --- helpers --------------------------------------------------------------------------------------------

    def _prompt_slots(self, sequence: SampleState) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        position = np.arange(len(sequence.request.tokens))
        size = self._cache.block_size
        return np.asarray(sequence.blocks, np.int64)[position // size] * size + position % size

    def _share_partial_block(self, first: SampleState, other: SampleState) -> None:
        """The block that the prompt fills in part was written for the first sample; others get a copy."""
        prompt = len(first.request.tokens)
        if other is not first and prompt % self._cache.block_size:
            place = prompt // self._cache.block_size
            self._cache.copy_block(first.blocks[place], other.blocks[place])

    def _prompt_logprobs(self, request: Request, hidden: Tensor) -> FloatArray:
        """Float32 (L,): of each prompt token given those before it; NaN for the first."""
        result = np.full(len(request.tokens), np.nan, np.float32)
        if len(result) > 1:
            targets = torch.from_numpy(request.tokens[1:].astype(np.int64)).to(hidden.device)
            pairs = Pairs(torch.arange(len(targets), device=hidden.device), targets, one_each=True)
            segments = [Segment(0, len(targets), request.adapter)]
            result[1:] = self._model.head.logprobs(hidden[:-1], pairs, segments).cpu().numpy()
        return result


def _segments(sequences: Sequence[SampleState]) -> list[Segment]:
    return adapter_segments([s.request.adapter for s in sequences], [1] * len(sequences))


def _make_cache(model: CausalLM, config: EngineConfig) -> KVCache:
    shape = model.config
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    token_bytes = 2 * shape.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    return KVCache(
        num_layers=shape.num_hidden_layers,
        num_kv_heads=heads,
        head_dim=head_dim,
        num_blocks=config.kv_cache_bytes // (token_bytes * config.kv_block_size),
        block_size=config.kv_block_size,
        dtype=model.dtype,
        device=model.device,
    )
