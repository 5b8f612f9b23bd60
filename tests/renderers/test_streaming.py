"""Streams of anything: what was shown is never taken back, however a model ends or garbles what it says."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mint.renderers import get_renderer
from tests.renderers.conversations import plain
from tests.renderers.templates import tokenizer_of

RENDERERS = {family: get_renderer("hf_template", tokenizer_of(family)) for family in ("qwen", "deepseek", "mistral")}
CALL = '{"name": "f", "arguments": {}}'
PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    CALL,
    "\n",
    " ",
    "<",
    "天",
    "a",
    "<tool",
    "_call>",
    "</th",
    "ink>",
]


def check(family: str, tokens: list[int]) -> None:
    renderer = RENDERERS[family]
    *deltas, last = renderer.parse_response_streaming(tokens)
    whole = plain(renderer.parse_response(tokens)[0])
    assert plain(last) == whole
    assert "".join(getattr(delta, "thinking", "") for delta in deltas) == whole["thinking"]
    assert "".join(getattr(delta, "text", "") for delta in deltas) == whole["text"]


@pytest.mark.parametrize("family", RENDERERS)
@settings(max_examples=300, deadline=None)
@example(pieces=["a", "<tool", "_call>", CALL, "</tool_call>"], ended=True)
@example(pieces=["<think>", "a", "</th", "ink>", "a"], ended=True)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), ended=st.booleans())
def test_marks_in_any_order(family: str, pieces: list[str], ended: bool):
    tokenizer = RENDERERS[family].tokenizer
    tokens = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
    check(family, tokens + RENDERERS[family].get_stop_sequences() * ended)


@pytest.mark.parametrize("family", RENDERERS)
@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(st.integers(0, 600), max_size=20))
def test_any_tokens(family: str, tokens: list[int]):
    check(family, tokens)
