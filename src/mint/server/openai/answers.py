"""Answers in one piece and as server-sent events, from what the engine draws."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from secrets import token_hex
from time import time
from typing import ClassVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from mint.engine.core import Progress, Sample, Sampled
from mint.errors import MintError
from mint.server.large_json import encode
from mint.server.openai.choices import Choice, Json
from mint.server.openai.drawing import Event, while_connected
from mint.server.openai.errors import ClientGoneError, error_body

LARGE_ANSWER = 4096
"""Tokens of an answer; one that tells of more is written in a thread."""


@dataclass
class Answer:
    """One answer on its way.

    Attributes:
        model: as the request names it.
        choices: those of each command, in order.
        results: of the commands that have ended, by their place.
    """

    PREFIX: ClassVar[str]
    KIND: ClassVar[str]
    CHUNK_KIND: ClassVar[str]

    model: str
    commands: Sequence[Sample]
    choices: Sequence[Sequence[Choice]]
    results: dict[int, Sampled] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time()))
    id: str = field(default_factory=lambda: token_hex(12))

    async def whole(self, events: AsyncGenerator[Event, None]) -> str:
        """The answer in one piece, as JSON."""
        async with aclosing(events):
            arrived = [event async for event in events]
        drawn = (sequence for _, event in arrived if isinstance(event, Sampled) for sequence in event.sequences)
        told = sum(len(s.tokens) if s.top is None else s.top.tokens.size for s in drawn)
        asked = sum(len(c.prompt) * (1 + c.query.top) for c in self.commands if c.query.last)
        if told + asked > LARGE_ANSWER:
            return await asyncio.to_thread(self._write, arrived)
        return self._write(arrived)

    def _write(self, events: Sequence[Event]) -> str:
        for place, event in events:
            self._advance(place, event)
        choices = [
            choice.whole(self.results[place].prompt) for place, mine in enumerate(self.choices) for choice in mine
        ]
        return encode({**self._head(self.KIND), "choices": choices, "usage": self._usage()})

    async def chunks(self, events: AsyncGenerator[Event, None], *, with_usage: bool) -> AsyncGenerator[str, None]:
        """The answer as server-sent events, the first of them once the engine has told something.

        Raises:
            MintError: it failed before that; later, an event says so.
        """
        usage = {"usage": None} if with_usage else {}
        opened = False
        try:
            async with aclosing(events):
                async for place, event in events:
                    fresh = self._advance(place, event)
                    for choice in fresh if opened else self._openings() + fresh:
                        yield _sse({**self._head(self.CHUNK_KIND), "choices": [choice], **usage})
                    opened = True
        except MintError as error:
            if not opened:
                raise
            yield _sse(error_body(error))
            return
        if with_usage:
            yield _sse({**self._head(self.CHUNK_KIND), "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _openings(self) -> list[Json]:
        openings = [choice.opening() for mine in self.choices for choice in mine]
        return [opening for opening in openings if opening is not None]

    def _advance(self, place: int, event: Progress | Sampled) -> list[Json]:
        """Take an event; returns the choices of the chunks that it makes."""
        choices = self.choices[place]
        if isinstance(event, Progress):
            deltas = [choices[index].delta(choices[index].push(*drawn)) for index, drawn in event.drawn.items()]
            return [delta for delta in deltas if delta is not None]
        self.results[place] = event
        ended = zip(choices, event.sequences, strict=True)
        deltas = [choice.delta(choice.finish(sequence)) for choice, sequence in ended]
        return [delta for delta in deltas if delta is not None] + [choice.closing() for choice in choices]

    def _head(self, kind: str) -> Json:
        return {"id": f"{self.PREFIX}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> Json:
        prompt = sum(len(command.prompt) for command in self.commands)
        completion = sum(len(sequence.tokens) for result in self.results.values() for sequence in result.sequences)
        cached = sum(result.cached_tokens for result in self.results.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class CompletionAnswer(Answer):
    """To completions."""

    PREFIX, KIND, CHUNK_KIND = "cmpl", "text_completion", "text_completion"


class ChatAnswer(Answer):
    """To chat completions."""

    PREFIX, KIND, CHUNK_KIND = "chatcmpl", "chat.completion", "chat.completion.chunk"


def _sse(event: Json) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
    """Sends `first`, then `rest`, until it ends or the client goes; then `rest` is closed, whatever it was doing."""

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        super().__init__(_chained(first, rest), media_type="text/event-stream")
        self._rest = rest

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self.stream_response(send))
        except ClientGoneError:
            pass
        finally:
            await self._rest.aclose()


async def _chained(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    yield first
    async for event in rest:
        yield event
