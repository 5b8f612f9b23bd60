"""The text of a sample as its tokens come: whole characters, up to the stop string, without special tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import AnyStr

from mint.engine.core import FloatArray, Int32Array, TopLogprobs
from mint.server.openai.tokenizer import Tokenizer, utf8_decoder

Alternatives = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """A token of a text, with its log-probability, likelier ones in its place, and the character where it begins."""

    id: int
    logprob: float | None
    top: Alternatives
    offset: int


@dataclass(frozen=True)
class Piece:
    """The next part of a text, and the tokens that it is made of."""

    text: str
    tokens: tuple[Token, ...]

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)

    def __add__(self, other: Piece) -> Piece:
        return Piece(self.text + other.text, self.tokens + other.tokens)


class TextStream:
    """Tokens in, settled text out. What may turn out to be the beginning of a stop string is held back.

    Args:
        stops: a text ends before the first of them.
        stop_ids: tokens that end a sample and are no part of its text.
        offset: the place of the first character.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[bytes], stop_ids: frozenset[int], offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._stop_ids = stop_ids
        self._offset = offset
        self._decoder = utf8_decoder()
        self._held: deque[tuple[int, float, Alternatives]] = deque()
        self._bytes = b""
        """Of the tokens that are held."""

    def push(self, tokens: Int32Array, logprobs: FloatArray, top: TopLogprobs | None) -> Piece:
        """What these tokens settle: int32 (n,), float32 (n,), (n, k)."""
        rows = alternatives(top, len(tokens))
        for token, logprob, likely in zip(tokens.tolist(), logprobs.tolist(), rows, strict=True):
            if token not in self._stop_ids:
                self._held.append((token, logprob, likely))
        self._bytes = b"".join(self._tokenizer.bytes_of[token] for token, _, _ in self._held)
        return self._release(self._settled())

    def end(self) -> Piece:
        """What is left when the last token has come. Of a character that was never finished nothing is left."""
        size, cut = len(self._bytes), self._first_stop()
        piece = self._release(cut)
        rest = cut - (size - len(self._bytes))
        if rest:  # the stop string begins inside a token
            piece += self._decode(self._held[0], self._bytes[:rest])
        return piece

    def _first_stop(self) -> int:
        places = [place for stop in self._stops if (place := self._bytes.find(stop)) >= 0]
        return min(places, default=len(self._bytes))

    def _settled(self) -> int:
        """How many of the held bytes belong to no stop string, whatever comes."""
        open_ends = [overlap(self._bytes, stop) for stop in self._stops]
        return min(self._first_stop(), len(self._bytes) - max(open_ends, default=0))

    def _release(self, limit: int) -> Piece:
        """Give out whole tokens within the first `limit` bytes."""
        pieces, at = [], 0
        while self._held and (end := at + len(self._tokenizer.bytes_of[self._held[0][0]])) <= limit:
            pieces.append(self._decode(self._held.popleft(), self._bytes[at:end]))
            at = end
        self._bytes = self._bytes[at:]
        return Piece("".join(piece.text for piece in pieces), tuple(chain(*(piece.tokens for piece in pieces))))

    def _decode(self, drawn: tuple[int, float, Alternatives], spelled: bytes) -> Piece:
        token, logprob, top = drawn
        text = "" if token in self._tokenizer.special else self._decoder.decode(spelled)
        self._offset += len(text)
        return Piece(text, (Token(token, logprob, top, self._offset - len(text)),))


def overlap(text: AnyStr, stop: AnyStr) -> int:
    """The length of the longest end of `text` that `stop` begins with, without being it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


def alternatives(top: TopLogprobs | None, count: int) -> list[Alternatives]:
    """The likeliest tokens of `count` positions, without the places that are empty."""
    if top is None:
        return [()] * count
    rows = zip(top.tokens.tolist(), top.logprobs.tolist(), strict=True)
    return [tuple((i, p) for i, p in zip(ids, values, strict=True) if i >= 0) for ids, values in rows]
