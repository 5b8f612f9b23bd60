"""Text from tokens, whatever borders the tokens have."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mint.server.openai.text import Piece, TextStream
from mint.server.openai.tokenizer import load_tokenizer
from mint.tiny import model_path

TOKENIZER = load_tokenizer(str(model_path()), 2048)
END = 2
BYTES = {spelled: token for token, spelled in enumerate(TOKENIZER.bytes_of) if len(spelled) == 1}
LETTERS = st.text(alphabet="ab é€🎈\n", max_size=12)


def push(stream: TextStream, tokens: list[int]) -> Piece:
    return stream.push(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), None)


def until_stop(text: str, stops: list[str]) -> str:
    """As an engine would be stopped: the text before whichever stop string is complete first."""
    ends = [(text.encode().find(stop.encode()) + len(stop.encode()), stop) for stop in stops if stop in text]
    if not ends:
        return text
    cut = text.encode()[: min(ends)[0]]
    return cut[: min(cut.find(stop.encode()) for stop in stops if stop.encode() in cut)].decode()


@given(text=LETTERS, stops=st.lists(st.text(alphabet="ab é€", min_size=1, max_size=3), max_size=3))
def test_byte_by_byte_the_text_is_the_same(text: str, stops: list[str]) -> None:
    stream = TextStream(TOKENIZER, [stop.encode() for stop in stops], frozenset({END}))
    said, told = b"", ""
    for byte in text.encode():
        said += bytes([byte])
        told += push(stream, [BYTES[bytes([byte])]]).text
        assert text.startswith(told)
        if any(stop.encode() in said for stop in stops):
            break
    told += stream.end().text
    assert told == until_stop(text, stops)
    assert "�" not in told


@given(text=LETTERS, cuts=st.lists(st.integers(0, 20), max_size=4))
def test_pieces_join_to_the_whole(text: str, cuts: list[int]) -> None:
    tokens = [*TOKENIZER.encode(text)[0].tolist(), END]
    stream = TextStream(TOKENIZER, [], frozenset({END}), offset=5)
    borders = [0, *sorted(cuts), len(tokens)]
    pieces = [push(stream, tokens[start:end]) for start, end in pairwise(borders)]
    whole = sum(pieces, Piece("", ())) + stream.end()
    assert whole.text == text
    assert [token.id for token in whole.tokens] == tokens[:-1]
    assert [token.offset for token in whole.tokens] == [5 + offset for offset in TOKENIZER.text_of(tokens[:-1])[1]]


def test_special_tokens_are_no_text() -> None:
    stream = TextStream(TOKENIZER, [], frozenset({END}))
    whole = push(stream, [BYTES[b"a"], 1, BYTES[b"b"]]) + stream.end()
    assert whole.text == "ab"
    assert len(whole.tokens) == 3


def test_bytes_that_are_no_character_become_replacement_characters() -> None:
    stream = TextStream(TOKENIZER, [], frozenset({END}))
    assert (push(stream, [BYTES[b"\xc3"], BYTES[b"a"]]) + stream.end()).text == "�a"


def test_a_stop_string_may_begin_inside_a_token() -> None:
    (token,) = TOKENIZER.encode(" two")[0].tolist()
    stream = TextStream(TOKENIZER, [b"wo"], frozenset({END}))
    assert push(stream, [token]).text == ""
    ended = stream.end()
    assert (ended.text, len(ended.tokens)) == (" t", 1)
