"""What is asked about a prompt beside its continuation: log-probabilities of its tokens, of others, the likeliest.

All of the model's own distribution; only alternatives are drawn, and told, at the temperature of the request.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mint.engine.core import FloatArray, PromptAnswer, PromptQuery, Sample, TopLogprobs
from mint.engine.sampling import GREEDY_BELOW, pick, top_of
from mint.models.logprobs import UnembeddingHead
from mint.models.segments import AdapterSlot, Segment

ALTERNATIVES = 1 << 32
"""Sample indices from here on are those of alternatives, so that they share no noise with samples."""


class PromptScores:
    """The answer to a `PromptQuery`, filled piece by piece as the prompt is computed. L tokens."""

    def __init__(self, command: Sample) -> None:
        query, length = command.query, len(command.prompt)
        self._command = command
        self._query = query
        self._logprobs = np.full(length, np.nan, np.float32) if query.last else None
        self._top = _empty_top(length, query.top) if query.top else None
        self._targets = np.full(query.targets.shape, np.nan, np.float32) if query.targets is not None else None
        self._alternatives = _empty_top(length - 1, query.alternatives) if query.alternatives else None

    @property
    def first(self) -> int:
        """The first token whose hidden state is needed."""
        length = len(self._command.prompt)
        if self._targets is not None or self._alternatives is not None:
            return 0
        return max(0, length - 1 - max(self._query.last, 1))

    @property
    def answer(self) -> PromptAnswer:
        """Complete once all pieces have come."""
        return PromptAnswer(self._logprobs, self._top, self._targets, self._alternatives)

    def add(self, start: int, hidden: Tensor, head: UnembeddingHead, adapter: AdapterSlot | None) -> None:
        """Hidden states (n, E) of tokens start ≤ t < start + n; that of token t tells of position t + 1."""
        first, last = max(start, self.first), len(self._command.prompt) - 1
        hidden = hidden[first - start : max(0, last - start)]
        for rows, logits in head.chunks(hidden, [Segment(0, len(hidden), adapter)]):
            self._add(first + rows.start + 1, logits)

    def _add(self, first: int, logits: Tensor) -> None:
        """Float32 (n, V) logits of positions first ≤ t < first + n; they are overwritten."""
        stop = first + len(logits)
        if self._alternatives is not None:
            self._draw(self._alternatives, first, logits)
        logprobs = torch.log_softmax(logits, dim=1, out=logits)
        wanted = max(first, len(self._command.prompt) - self._query.last)
        if self._logprobs is not None and wanted < stop:
            tokens = torch.from_numpy(self._command.prompt[wanted:stop].astype(np.int64)).to(logprobs.device)
            values = logprobs[wanted - first :].gather(1, tokens[:, None])[:, 0]
            self._logprobs[wanted:stop] = values.cpu().numpy()
        if self._top is not None and wanted < stop:
            tokens_of_rows, values_of_rows = top_of(logprobs[wanted - first :], self._query.top)
            self._top.tokens[wanted:stop], self._top.logprobs[wanted:stop] = tokens_of_rows, values_of_rows
        if self._targets is not None and self._query.targets is not None:
            targets = torch.from_numpy(self._query.targets[first - 1 : stop - 1]).to(logprobs.device)
            values = logprobs.gather(1, targets.clamp(min=0)).masked_fill_(targets < 0, torch.nan)
            self._targets[first - 1 : stop - 1] = values.cpu().numpy()

    def _draw(self, into: TopLogprobs, first: int, logits: Tensor) -> None:
        params, count, rows = self._command.params, self._query.alternatives, len(logits)
        greedy = params.temperature < GREEDY_BELOW
        logprobs = torch.log_softmax(logits if greedy else logits / params.temperature, dim=1)
        for place in range(count):
            if greedy:
                tokens = logprobs.argmax(dim=1)
            else:
                positions = range(first, first + rows)
                tokens = pick(logprobs.exp(), [params.seed] * rows, [ALTERNATIVES + place] * rows, positions)
            into.tokens[first - 1 : first - 1 + rows, place] = tokens.cpu().numpy()
            values: FloatArray = logprobs.gather(1, tokens[:, None])[:, 0].cpu().numpy()
            into.logprobs[first - 1 : first - 1 + rows, place] = values


def _empty_top(length: int, count: int) -> TopLogprobs:
    return TopLogprobs(np.full((length, count), -1, np.int32), np.full((length, count), -np.inf, np.float32))


def is_asked(query: PromptQuery) -> bool:
    """Whether a query asks anything."""
    return bool(query.last or query.top or query.alternatives or query.targets is not None)
