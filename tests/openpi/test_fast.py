"""Action chunks as FAST tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.fft import dct

from mint.openpi.fast import FastCodec
from tests.openpi.codecs import ACTION_DIM, HORIZON, byte_level, fitted, smooth_chunks

CODECS = pytest.mark.parametrize("codec", [fitted(), byte_level()], ids=["fitted", "byte level"])
chunks = arrays(
    np.float64, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.floats(-1.5, 1.5, allow_nan=False)
)


@given(chunks)
def test_a_chunk_comes_back_within_quantisation(chunk: np.ndarray) -> None:
    """Each coefficient is off by half a step, and the transform keeps lengths."""
    codec = byte_level()
    decoded = codec.decode(codec.encode(chunk), *chunk.shape)
    assert decoded.ok
    assert decoded.actions.shape == chunk.shape
    assert np.linalg.norm(decoded.actions - chunk, axis=0).max() <= 0.5 / codec.scale * np.sqrt(len(chunk)) + 1e-5


def test_fitted_tokens_are_fewer_than_the_numbers_and_hold_chunks_never_seen() -> None:
    codec, unseen = fitted(), smooth_chunks(50, seed=1)
    coded = [codec.encode(chunk) for chunk in unseen]
    assert np.mean([len(tokens) for tokens in coded]) < HORIZON * ACTION_DIM / 2
    for chunk, tokens in zip(unseen, coded, strict=True):
        decoded = codec.decode(tokens, HORIZON, ACTION_DIM)
        assert decoded.ok
        assert np.abs(decoded.actions - chunk).max() < 0.16


def test_coefficients_are_characters_row_by_row_from_the_lowest_frequency() -> None:
    codec = byte_level()
    chunk = smooth_chunks(1)[0]
    expected = np.around(dct(chunk, axis=0, norm="ortho") * 10).astype(int).ravel()
    characters = codec.tokenizer.decode(codec.encode(chunk))
    assert [ord(character) - 354 for character in characters] == expected.tolist()


@CODECS
@given(tokens=st.lists(st.integers(-(1 << 70), 1 << 70) | st.integers(0, 700), max_size=60))
def test_no_tokens_raise(codec: FastCodec, tokens: list[int]) -> None:
    decoded = codec.decode(tokens, HORIZON, ACTION_DIM)
    assert decoded.actions.shape == (HORIZON, ACTION_DIM)
    assert decoded.actions.dtype == np.float32
    assert np.isfinite(decoded.actions).all()
    if decoded.ok:
        assert all(0 <= token < codec.vocab_size for token in tokens)


@CODECS
def test_too_few_coefficients_are_padded_and_too_many_cut(codec: FastCodec) -> None:
    chunk = smooth_chunks(1)[0]
    tokens = codec.encode(chunk)
    whole = codec.decode(tokens, HORIZON, ACTION_DIM).actions
    short, long = (codec.decode(some, HORIZON, ACTION_DIM) for some in (tokens[:-1], tokens + tokens[:1]))
    assert not short.ok
    assert not long.ok
    np.testing.assert_array_equal(long.actions, whole)
    # what is missing is of the highest frequencies, and small in a smooth chunk
    assert np.abs(short.actions - whole).max() < 0.3


def test_a_byte_that_is_no_character_is_seen() -> None:
    codec = byte_level()
    half = codec.tokenizer.encode(chr(354), add_special_tokens=False).ids
    tokens = codec.encode(np.zeros((2, 1)))
    assert codec.decode(tokens, 2, 1).ok
    broken = codec.decode([codec.tokenizer.token_to_id("Å"), *half, *half], 2, 1)
    assert not broken.ok


def test_what_lies_outside_a_fitted_range_is_clipped_not_dropped() -> None:
    codec = fitted()
    decoded = codec.decode(codec.encode(np.full((HORIZON, ACTION_DIM), 50.0)), HORIZON, ACTION_DIM)
    assert decoded.ok
    assert decoded.actions.max() < 2


@pytest.mark.parametrize("bad", [[], [1.0], [[[1.0]]], [[float("nan")]], [[float("inf")]]])
def test_what_is_no_chunk_is_refused(bad: list[object]) -> None:
    with pytest.raises(ValueError, match="actions must be"):
        fitted().encode(bad)


def test_a_vocabulary_smaller_than_the_alphabet_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 8; the coefficients run from"):
        FastCodec.fit(smooth_chunks(20), vocab_size=8)
    with pytest.raises(ValueError, match="chunks must be"):
        FastCodec.fit(smooth_chunks(1)[0])


@CODECS
def test_a_codec_is_read_from_the_layout_of_the_hub(codec: FastCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    again = FastCodec.load(tmp_path)
    chunk = smooth_chunks(1, seed=5)[0]
    assert again.encode(chunk) == codec.encode(chunk)
    assert (again.horizon, again.action_dim) == (codec.horizon, codec.action_dim)
    # the hub's own file has no max_token
    config = json.loads((tmp_path / "processor_config.json").read_text())
    del config["max_token"]
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert FastCodec.load(tmp_path).encode(chunk) == codec.encode(chunk)


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json"])
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    fitted().save(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=name):
        FastCodec.load(tmp_path)
