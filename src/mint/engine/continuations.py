"""Sample requests on their way: what was asked, and each continuation of the prompt as far as it has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mint.engine.adapters import Adapter
from mint.engine.blocks import next_key, root_key, seeing_key
from mint.engine.constraints import ConstraintState
from mint.engine.core import (
    FloatArray,
    Image,
    Int32Array,
    Int64Array,
    Progress,
    PromptAnswer,
    Sample,
    Sampled,
    SampledSequence,
    StopReason,
    TopLogprobs,
)
from mint.engine.paged_attention import Chunk
from mint.engine.prompt_scores import PromptScores
from mint.errors import MintError


@dataclass(eq=False)
class Request:
    """A sample request and what has come of it.

    Attributes:
        number: goes back with its answer.
        cached_tokens: of its prompt, found computed when it was first admitted; None before that.
        scores: what is asked about the prompt; None once it is answered, or when nothing is.
        constraint: that each of its samples begins with.
    """

    number: int
    command: Sample
    adapter: Adapter | None
    scores: PromptScores | None
    constraint: ConstraintState | None = None
    cached_tokens: int | None = None
    prompt_answer: PromptAnswer = field(default_factory=PromptAnswer)
    finished: dict[int, SampledSequence] = field(default_factory=dict)
    error: MintError | None = None

    def note_cached(self, tokens: int) -> None:
        """A continuation was admitted, of which so many tokens are computed; the first one counts."""
        if self.cached_tokens is None:
            self.cached_tokens = tokens

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.error is not None or len(self.finished) == self.command.num_samples

    @property
    def answer(self) -> Sampled | MintError:
        """All sequences in order, or what went wrong; of a settled request."""
        if self.error is not None:
            return self.error
        sequences = tuple(self.finished[index] for index in range(self.command.num_samples))
        return Sampled(sequences, self.prompt_answer, self.cached_tokens or 0)


@dataclass(eq=False)
class Continuation:
    """One continuation of a request's prompt.

    Attributes:
        index: which of the request's samples it is.
        siblings: samples after `index` that begin from it, once the prompt is computed.
        blocks: its block table.
        computed: tokens whose keys and values are in these blocks.
        tail: the last bytes of its text, as far back as a stop string reaches.
        told: tokens that were sent as progress.
        constraint: what it may go on with.
    """

    request: Request
    index: int
    siblings: int = 0
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[Int32Array, FloatArray]] = field(default_factory=list)
    tail: bytes = b""
    told: int = 0
    constraint: ConstraintState | None = field(init=False)
    _keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.constraint = self.request.constraint.copy() if self.request.constraint is not None else None

    @property
    def num_tokens(self) -> int:
        """Of prompt and continuation."""
        return len(self.request.command.prompt) + len(self.tokens)

    def text(self, start: int, stop: int) -> Int32Array:
        """Tokens start ≤ t < stop of prompt and continuation."""
        prompt = self.request.command.prompt
        if stop <= len(prompt):
            return prompt[start:stop]
        drawn = self.tokens[max(0, start - len(prompt)) : stop - len(prompt)]
        return np.concatenate([prompt[start:], np.array(drawn, np.int32)])

    def keys(self, count: int, block_size: int) -> Sequence[bytes]:
        """Of its first `count` blocks, all of them full."""
        while len(self._keys) < count:
            start = len(self._keys) * block_size
            before = self._keys[-1] if self._keys else self._root_key()
            self._keys.append(next_key(before, self.text(start, start + block_size)))
        return self._keys[:count]

    def _root_key(self) -> bytes:
        command = self.request.command
        return seeing_key(root_key(command.revision.key if command.revision else None), command)

    def chunk(self, start: int, stop: int) -> Chunk:
        """These tokens, to be computed into its blocks."""
        return Chunk(start, stop, self.blocks, len(self.request.command.prompt) if self.request.command.whole else 0)

    def image_places(self, chunk: Chunk, row: int) -> Iterator[tuple[Int64Array, Image, int]]:
        """The images of which a chunk has tokens: their rows in a batch where it begins with `row`, and from which."""
        for placed in self.request.command.images:
            first, stop = max(chunk.start, placed.start), min(chunk.stop, placed.start + placed.num_tokens)
            if first < stop:
                yield np.arange(first, stop) + (row - chunk.start), placed.image, first - placed.start

    def sibling(self, index: int, blocks: list[int]) -> Continuation:
        """Another sample of the prompt that this one has computed."""
        return Continuation(self.request, index, blocks=blocks, computed=self.computed, _keys=list(self._keys))

    def finish(self, reason: StopReason) -> None:
        """Nothing more is to be drawn."""
        self.request.finished[self.index] = SampledSequence(*self._drawn(0), reason, self._top(0))

    @property
    def is_ended(self) -> bool:
        """Whether nothing more is to be drawn for it."""
        return self.request.error is not None or self.index in self.request.finished

    def progress(self) -> Progress:
        """What has been drawn since the last progress."""
        news = (*self._drawn(self.told), self._top(self.told))
        self.told = len(self.tokens)
        return Progress({self.index: news})

    def _drawn(self, start: int) -> tuple[Int32Array, FloatArray]:
        return np.array(self.tokens[start:], np.int32), np.array(self.logprobs[start:], np.float32)

    def _top(self, start: int) -> TopLogprobs | None:
        if not self.request.command.top_logprobs:
            return None
        tokens, logprobs = zip(*self.tops[start:], strict=True)
        return TopLogprobs(np.stack(tokens), np.stack(logprobs))
