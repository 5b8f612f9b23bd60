"""Generation: a step computes the next tokens of every running continuation, whatever these are.

One that is past its prompt brings one token, one that is not brings a piece of its prompt. Requests join and leave at
every step.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mint.config import EngineConfig
from mint.engine.adapters import Adapter
from mint.engine.constraints import ConstraintCompiler, mask_logits
from mint.engine.continuations import Continuation, Request
from mint.engine.core import FloatArray, Int32Array, Progress, Sample, Sampled, StopReason
from mint.engine.failures import FATAL, refusal
from mint.engine.image_cache import ImageCache
from mint.engine.kv_cache import KVCache
from mint.engine.packing import adapter_segments
from mint.engine.paged_attention import PagedAttention
from mint.engine.prompt_scores import PromptScores, is_asked
from mint.engine.sample_schedule import SampleSchedule, Work
from mint.engine.sampling import Drawn, draw, top_of
from mint.errors import BadRequestError, MintError
from mint.models.causal_lm import CausalLM
from mint.models.segments import StackCache
from mint.models.threads import WIDE

Answer: TypeAlias = tuple[int, Sampled | Progress | MintError]


class Generator:
    """All samples in progress on one base model.

    Args:
        token_bytes: the bytes of each token of the vocabulary, for stop strings.
        constraints: of the model's tokenizer.
    """

    def __init__(
        self,
        model: CausalLM,
        config: EngineConfig,
        token_bytes: Sequence[bytes],
        constraints: ConstraintCompiler,
        images: ImageCache,
    ) -> None:
        self._model = model
        self._images = images
        self._token_bytes = token_bytes
        self._constraints = constraints
        self._cache = KVCache(model, config)
        self._schedule = SampleSchedule(config, self._cache.num_blocks, self._cache.block_size)
        self._stacks = StackCache()

    @property
    def capacity_tokens(self) -> int:
        """Longest prompt and sample together that the cache could hold."""
        return self._cache.num_blocks * self._cache.block_size

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return self._schedule.has_work

    def add(self, number: int, command: Sample, adapter: Adapter | None) -> None:
        """Queue a request; `number` comes back with its result.

        Raises:
            BadRequestError: there is nothing to sample, the cache could never hold it, or its constraint cannot be met.
        """
        wanted = len(command.prompt) + command.params.max_tokens
        if min(len(command.prompt), command.num_samples, command.params.max_tokens) < 1:
            raise BadRequestError("a sample needs a prompt, num_samples and max_tokens of at least 1")
        if wanted > self.capacity_tokens:
            raise BadRequestError(
                f"prompt and max_tokens are {wanted} tokens together; this server's cache holds at most "
                f"{self.capacity_tokens} (`mint serve --kv-cache-gib` gives it more memory)",
                field="sampling_params.max_tokens",
            )
        scores = PromptScores(command) if is_asked(command.query) else None
        constraint = command.params.constraint
        start = self._constraints.start(constraint) if constraint is not None else None
        self._schedule.add(Continuation(Request(number, command, adapter, scores, start), 0, command.num_samples - 1))

    def cancel(self, number: int) -> None:
        """Give up a request, if it is still in progress; its blocks are free at once."""
        request = self._schedule.find(number)
        if request is not None:
            self._schedule.drop(request)

    @torch.no_grad()
    def step(self) -> Iterator[Answer]:
        """Advance by one batch; yields the requests that this completes, and what streamed ones have drawn."""
        work = self._schedule.next_work()
        try:
            drawing = self._advance(work)
        except FATAL:
            raise
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the batch's activations
            self._blame(work, error)
            drawing = []
        for continuation in drawing:
            request = continuation.request
            if request.command.stream and request.error is None:
                yield request.number, continuation.progress()
        for request in self._schedule.settle():
            yield request.number, request.answer

    def _advance(self, work: Sequence[Work]) -> list[Continuation]:
        """Compute chunks; returns the continuations that have drawn a token."""
        with self._model.stacking(self._stacks):
            hidden = self._compute(work)
            self._score_prompts(work, hidden)
            drawing, rows = self._complete(work)
            if drawing:
                self._take(drawing, self._draw(drawing, hidden[torch.tensor(rows, device=hidden.device)]))
        self._stacks.sweep()
        return drawing

    def _blame(self, work: Sequence[Work], error: Exception) -> None:
        """A step failed: its only request is at fault, or it has to be found among several."""
        requests = list(dict.fromkeys(each.continuation.request for each in work))
        if len(requests) > 1:
            self._schedule.suspect(requests)
            return
        requests[0].error = refusal(error, "the sample")

    # --- the parts of a step --------------------------------------------------------------------------------

    def _compute(self, work: Sequence[Work]) -> Tensor:
        """The hidden states (T, E) of all chunks."""
        if fresh := self._schedule.take_fresh():
            self._cache.clear(fresh)
        device = self._model.device
        tokens = torch.cat([torch.from_numpy(c.text(chunk.start, chunk.stop)) for c, chunk in work])
        positions = torch.cat([torch.arange(chunk.start, chunk.stop) for _, chunk in work])
        plan = PagedAttention(self._cache, [chunk for _, chunk in work], device)
        lengths = [chunk.stop - chunk.start for _, chunk in work]
        segments = adapter_segments([c.request.adapter for c, _ in work], lengths)
        starts = np.cumsum([0, *lengths]).tolist()
        rows = zip(work, starts, strict=False)
        places = [place for (c, chunk), row in rows for place in c.image_places(chunk, row)]
        inserts = self._images.inserts(places, device)
        return self._model.hidden_states(tokens.long().to(device), positions.to(device), plan, segments, inserts)

    def _score_prompts(self, work: Sequence[Work], hidden: Tensor) -> None:
        """Answer what is asked about prompts of which a piece was computed."""
        row = 0
        for continuation, chunk in work:
            request = continuation.request
            size = chunk.stop - chunk.start
            if request.scores is not None:
                request.scores.add(chunk.start, hidden[row : row + size], self._model.head, request.adapter)
                if chunk.stop >= len(request.command.prompt):
                    request.prompt_answer, request.scores = request.scores.answer, None
            row += size

    def _complete(self, work: Sequence[Work]) -> tuple[list[Continuation], list[int]]:
        """The continuations that draw now, and the row of each one's last token."""
        drawing: list[Continuation] = []
        rows: list[int] = []
        row = -1
        for each in work:
            continuation, chunk = each
            row += chunk.stop - chunk.start
            self._schedule.computed(each)
            if chunk.stop == continuation.num_tokens:
                fork = self._schedule.fork(continuation)
                if fork.targets:
                    self._cache.copy_block(fork.source, fork.targets)
                drawing += [continuation, *fork.siblings]
                rows += [row] * (1 + len(fork.siblings))
        return drawing, rows

    def _draw(self, drawing: Sequence[Continuation], hidden: Tensor) -> Drawn:
        """One token for each row of (B, E) hidden states."""
        segments = adapter_segments([c.request.adapter for c in drawing], [1] * len(drawing))
        logits = self._model.head.logits(hidden, segments)
        constrained = {row: c.constraint for row, c in enumerate(drawing) if c.constraint is not None}
        for row, error in mask_logits(logits, constrained).items():
            drawing[row].request.error = error
        params = [c.request.command.params for c in drawing]
        with WIDE:
            return draw(logits, params, [c.index for c in drawing], [len(c.tokens) for c in drawing])

    def _take(self, drawing: Sequence[Continuation], drawn: Drawn) -> None:
        """Append what was drawn and end the continuations that it completes."""
        likeliest = _likeliest(drawing, drawn)
        values = zip(drawn.tokens.tolist(), drawn.logprobs.tolist(), strict=True)
        for row, (continuation, (token, logprob)) in enumerate(zip(drawing, values, strict=True)):
            if continuation.request.error is None:
                continuation.tops += likeliest.get(row, [])
                try:
                    self._take_token(continuation, token, logprob)
                except MintError as error:
                    continuation.request.error = error

    def _take_token(self, continuation: Continuation, token: int, logprob: float) -> None:
        """Append a token, and end the continuation if that completes it.

        Raises:
            BadRequestError: there is none that could be drawn, or its constraint cannot follow it.
        """
        continuation.tokens.append(token)
        continuation.logprobs.append(logprob)
        if not math.isfinite(logprob):
            raise BadRequestError(
                "the logits are not finite: these weights have diverged, sample an earlier checkpoint"
            )
        if continuation.constraint is not None:
            continuation.constraint.accept(token)
        if (reason := self._stop_reason(continuation, token)) is not None:
            continuation.finish(reason)

    def _stop_reason(self, continuation: Continuation, token: int) -> StopReason | None:
        params = continuation.request.command.params
        is_complete = continuation.constraint is not None and continuation.constraint.must_stop
        if is_complete or token in params.stop_token_ids:
            return "stop"
        if params.stop_bytes:
            text = continuation.tail + self._token_bytes[token]
            if any(stop in text for stop in params.stop_bytes):
                return "stop"
            reach = max(len(stop) for stop in params.stop_bytes) - 1
            continuation.tail = text[max(0, len(text) - reach) :]
        return "length" if len(continuation.tokens) == params.max_tokens else None


def _likeliest(drawing: Sequence[Continuation], drawn: Drawn) -> dict[int, list[tuple[Int32Array, FloatArray]]]:
    """By row, the likeliest tokens of those that are to tell them; all rows at once."""
    wanted = {row: c.request.command.top_logprobs for row, c in enumerate(drawing) if c.request.command.top_logprobs}
    if not wanted:
        return {}
    tokens, logprobs = top_of(drawn.distribution[list(wanted)], max(wanted.values()))
    return {
        row: [(tokens[place, :count], logprobs[place, :count])] for place, (row, count) in enumerate(wanted.items())
    }
