"""One choice of an answer, whole or in deltas, as completions and as chat completions write it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from typing_extensions import override

from mint.engine.core import FloatArray, Int32Array, PromptAnswer, SampledSequence, TopLogprobs
from mint.server.openai.prompts import Prompt
from mint.server.openai.text import Piece, TextStream, Token, alternatives
from mint.server.openai.tokenizer import Tokenizer
from mint.server.openai.tools import Call, ToolFormat

Json = dict[str, Any]


class Choice(ABC):
    """What has come of one sequence.

    Attributes:
        index: of the choice in the answer.
        finish_reason: None until the sequence has ended.
    """

    def __init__(self, index: int, text: TextStream) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self._stream = text
        self._num_seen = 0
        self._text = ""
        self._tokens: list[Token] = []

    def push(self, tokens: Int32Array, logprobs: FloatArray, top: TopLogprobs | None) -> Piece:
        """Take what has been drawn since the last time, and give what that settles."""
        self._num_seen += len(tokens)
        return self._keep(self._stream.push(tokens, logprobs, top))

    def finish(self, sequence: SampledSequence) -> Piece:
        """Take the whole sequence, and give what was not given before."""
        seen, top = self._num_seen, sequence.top
        rest = TopLogprobs(top.tokens[seen:], top.logprobs[seen:]) if top is not None else None
        piece = self.push(sequence.tokens[seen:], sequence.logprobs[seen:], rest)
        self.finish_reason = sequence.stop_reason
        return piece + self._keep(self._stream.end())

    def _keep(self, piece: Piece) -> Piece:
        self._text += piece.text
        self._tokens += piece.tokens
        return piece

    @abstractmethod
    def whole(self, prompt: PromptAnswer) -> Json:
        """The choice of an answer in one piece; it must be finished."""

    @abstractmethod
    def opening(self) -> Json | None:
        """The choice of the first chunk of a stream, where there is something to say before all tokens."""

    @abstractmethod
    def delta(self, piece: Piece) -> Json | None:
        """The choice of a chunk with the next piece, unless there is nothing to tell of it."""

    @abstractmethod
    def closing(self) -> Json:
        """The choice of the last chunk."""


class CompletionChoice(Choice):
    """Of completions. With `echo` it begins with the prompt."""

    def __init__(
        self, index: int, text: TextStream, tokenizer: Tokenizer, prompt: Prompt, *, echo: bool, logprobs: bool
    ) -> None:
        super().__init__(index, text)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._echo = echo
        self._with_logprobs = logprobs

    @override
    def whole(self, prompt: PromptAnswer) -> Json:
        text = self._prompt.text + self._text if self._echo else self._text
        tokens = self._prompt_tokens(prompt) + self._tokens if self._echo else self._tokens
        return self._choice(text, tokens, self.finish_reason)

    @override
    def opening(self) -> Json | None:
        return self._choice(self._prompt.text, [], None) if self._echo else None

    @override
    def delta(self, piece: Piece) -> Json | None:
        return self._choice(piece.text, piece.tokens, None) if piece.text or (self._with_logprobs and piece) else None

    @override
    def closing(self) -> Json:
        return self._choice("", [], self.finish_reason)

    def _choice(self, text: str, tokens: Sequence[Token], reason: str | None) -> Json:
        logprobs = self._logprobs(tokens) if self._with_logprobs else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _prompt_tokens(self, prompt: PromptAnswer) -> list[Token]:
        if prompt.logprobs is None:
            return []
        values = [None, *prompt.logprobs[1:].tolist()]
        places = zip(self._prompt.tokens.tolist(), values, self._prompt.offsets, strict=True)
        tops = alternatives(prompt.top, len(values))
        return [Token(i, value, top, offset) for (i, value, offset), top in zip(places, tops, strict=True)]

    def _logprobs(self, tokens: Sequence[Token]) -> Json:
        spell = self._tokenizer.spell
        return {
            "tokens": [spell(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            # the token itself is among them, however unlikely
            "top_logprobs": [
                {spell(i): value for i, value in (*token.top, (token.id, token.logprob))}
                if token.logprob is not None
                else None
                for token in tokens
            ],
            "text_offset": [token.offset for token in tokens],
        }


@dataclass(frozen=True)
class ChatStyle:
    """What a chat's choices have in common. `num_calls`: how many calls of tools a message may have, None for any."""

    tokenizer: Tokenizer
    tools: ToolFormat
    logprobs: bool
    num_calls: int | None


class ChatChoice(Choice):
    """Of chat completions."""

    def __init__(self, index: int, text: TextStream, style: ChatStyle) -> None:
        super().__init__(index, text)
        self._style = style
        self._num_told = 0
        """Characters of content that have been streamed."""

    @override
    def whole(self, prompt: PromptAnswer) -> Json:
        content, calls = self._content_and_calls()
        message: Json = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [_tool_call(call) for call in calls]
        logprobs = self._logprobs(self._tokens) if self._style.logprobs else None
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self._reason(calls)}

    @override
    def opening(self) -> Json | None:
        return self._delta({"role": "assistant", "content": ""})

    @override
    def delta(self, piece: Piece) -> Json | None:
        content = self._tell(self._text[: self._style.tools.settled(self._text)])
        logprobs = self._logprobs(piece.tokens) if self._style.logprobs and piece.tokens else None
        return self._delta(content, logprobs) if content or logprobs else None

    @override
    def closing(self) -> Json:
        content, calls = self._content_and_calls()
        last = self._tell(content)
        if calls:
            last["tool_calls"] = [{"index": place, **_tool_call(call)} for place, call in enumerate(calls)]
        return self._delta(last) | {"finish_reason": self._reason(calls)}

    def _content_and_calls(self) -> tuple[str, list[Call]]:
        content, calls = self._style.tools.split(self._text)
        return content, calls[: self._style.num_calls]

    def _tell(self, content: str) -> Json:
        """The part of the content that has not been streamed yet."""
        fresh = content[self._num_told :]
        self._num_told += len(fresh)
        return {"content": fresh} if fresh else {}

    def _reason(self, calls: list[Call]) -> str | None:
        return "tool_calls" if calls and self.finish_reason == "stop" else self.finish_reason

    def _delta(self, delta: Json, logprobs: Json | None = None) -> Json:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, tokens: Sequence[Token]) -> Json:
        content = [
            {
                **self._token(token.id, token.logprob),
                "top_logprobs": [self._token(i, value) for i, value in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> Json:
        tokenizer = self._style.tokenizer
        return {"token": tokenizer.spell(token), "logprob": logprob, "bytes": list(tokenizer.bytes_of[token])}


def _tool_call(call: Call) -> Json:
    return {
        "id": f"call_{token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
