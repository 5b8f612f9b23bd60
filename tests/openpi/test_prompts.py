"""Instruction, state and actions as the policy's tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.openpi.prompts import PolicyTokens, prefix_text
from tests.openpi.codecs import ACTION_DIM, HORIZON, fitted, policy_tokens, smooth_chunks, text_tokenizer


def test_the_prefix_is_the_text_that_the_policy_was_trained_on() -> None:
    state = [-1.2, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0]
    assert prefix_text(" Pick_up the CUP\n", state) == "Task: pick up the cup, State: -1 0 0 128 192 255 255;\n"


@given(st.floats(-1, 1))
def test_a_bin_is_1_over_128_wide(value: float) -> None:
    place = int(prefix_text("x", [value]).split("State: ")[1].removesuffix(";\n"))
    assert place / 128 - 1 <= value <= (place + 1) / 128 - 1


@pytest.mark.parametrize("state", [[[0.0]], [float("nan")], 1.0])
def test_what_is_no_state_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match="state must be a finite vector"):
        prefix_text("x", state)  # type: ignore[arg-type]


def test_the_prefix_begins_and_the_target_ends_as_texts_do() -> None:
    policy = policy_tokens()
    prefix = policy.prefix("go", [0.0])
    assert prefix[0] == policy.tokenizer.token_to_id("<bos>")
    assert policy.tokenizer.decode(prefix[1:]) == "Task: go, State: 128;\n"
    target = policy.target(smooth_chunks(1)[0])
    begin, actions = target.tokens[:8], target.tokens[8:-2]
    assert policy.tokenizer.decode(begin) == "Action: "
    assert [512 - 1 - 128 - token for token in actions] == fitted().encode(smooth_chunks(1)[0])
    assert target.tokens[-2:] == [policy.tokenizer.token_to_id("|"), policy.tokenizer.token_to_id("<eos>")]
    assert target.token_ar_mask == [1] * len(target.tokens)
    assert target.weights == [1.0] * len(target.tokens)


def test_what_the_target_says_is_read_back() -> None:
    policy, chunk = policy_tokens(), smooth_chunks(1, seed=3)[0]
    tokens = policy.target(chunk).tokens
    for said in (tokens, tokens[:-1], [*tokens, 5, 6]):
        decoded = policy.actions(said, HORIZON, ACTION_DIM)
        assert decoded.ok
        assert np.abs(decoded.actions - chunk).max() < 0.16


def test_what_is_not_a_whole_target_is_told() -> None:
    policy, chunk = policy_tokens(), smooth_chunks(1, seed=3)[0]
    tokens = policy.target(chunk).tokens
    unfinished = policy.actions(tokens[:-2], HORIZON, ACTION_DIM)
    assert not unfinished.ok
    assert np.abs(unfinished.actions - chunk).max() < 0.16
    unbegun = policy.actions(tokens[1:], HORIZON, ACTION_DIM)
    assert not unbegun.ok
    assert not unbegun.actions.any()
    text_between = policy.actions([*tokens[:9], tokens[0], *tokens[9:]], HORIZON, ACTION_DIM)
    assert not text_between.ok


@given(st.lists(st.integers(0, 511) | st.integers(-(1 << 66), 1 << 66), max_size=40), st.booleans())
def test_no_tokens_raise(tokens: list[int], begun: bool) -> None:
    policy = policy_tokens()
    begin = policy.target(smooth_chunks(1)[0]).tokens[:8] if begun else []
    decoded = policy.actions([*begin, *tokens], HORIZON, ACTION_DIM)
    assert decoded.actions.shape == (HORIZON, ACTION_DIM)
    assert np.isfinite(decoded.actions).all()


def test_a_vocabulary_without_room_and_a_tokenizer_without_ends_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a vocabulary of \d+ has no place for \d+ action tokens"):
        PolicyTokens(text_tokenizer(), fitted(), vocab_size=128 + fitted().vocab_size - 1)
    with pytest.raises(ValueError, match="the tokenizer has no <bos>"):
        PolicyTokens(fitted().tokenizer, fitted(), vocab_size=512)


def test_a_models_folder_has_all_of_it(tmp_path: Path) -> None:
    policy = policy_tokens()
    text_tokenizer().save(str(tmp_path / "tokenizer.json"))
    fitted().save(tmp_path / "fast")
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 512}}')
    again = PolicyTokens.load(tmp_path)
    chunk = smooth_chunks(1, seed=4)[0]
    assert again.target(chunk) == policy.target(chunk)
    assert again.prefix("go", [0.1]) == policy.prefix("go", [0.1])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json has no text_config\.vocab_size"):
        PolicyTokens.load(tmp_path)
