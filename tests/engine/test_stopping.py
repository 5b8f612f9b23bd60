"""Where samples stop: at tokens, at strings across token borders, at a length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.engine.core import SampledSequence, StopReason
from tests.engine.sampling_support import BOUND, Sampling, make_prompt

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture(scope="module")
def natural(sampling: Sampling) -> SampledSequence:
    """A sample that nothing stops."""
    return sampling.driver.one(sampling.command("a", make_prompt(10, 9), max_tokens=30)).sequences[0]


def stopped(sampling: Sampling, **params: object) -> SampledSequence:
    command = sampling.command("a", make_prompt(10, 9), **{"max_tokens": 30, **params})
    return sampling.driver.one(command).sequences[0]


def assert_prefix(ours: SampledSequence, natural: SampledSequence, length: int, reason: StopReason) -> None:
    np.testing.assert_array_equal(ours.tokens, natural.tokens[:length])
    np.testing.assert_allclose(ours.logprobs, natural.logprobs[:length], rtol=0, atol=BOUND)
    assert ours.stop_reason == reason


@pytest.mark.parametrize("max_tokens", [1, 2, 29])
def test_max_tokens(sampling: Sampling, natural: SampledSequence, max_tokens: int) -> None:
    assert_prefix(stopped(sampling, max_tokens=max_tokens), natural, max_tokens, "length")


@pytest.mark.parametrize("place", [0, 7, 29])
def test_a_stop_token_ends_a_sample_and_is_part_of_it(sampling: Sampling, natural: SampledSequence, place: int) -> None:
    token = int(natural.tokens[place])
    first = natural.tokens.tolist().index(token)
    ours = stopped(sampling, stop_token_ids=frozenset({token, 2047}))
    assert_prefix(ours, natural, first + 1, "stop")


def test_the_last_allowed_token_may_stop(sampling: Sampling, natural: SampledSequence) -> None:
    token = int(natural.tokens[7])
    first = natural.tokens.tolist().index(token)
    ours = stopped(sampling, stop_token_ids=frozenset({token}), max_tokens=first + 1)
    assert_prefix(ours, natural, first + 1, "stop")


def test_without_stops_even_the_end_token_is_passed(sampling: Sampling) -> None:
    """What stops a sample is the request's; the engine adds nothing of the model's."""
    command = sampling.command("base", make_prompt(11, 9), 4, max_tokens=60, temperature=50.0)
    sequences = sampling.driver.one(command).sequences
    assert all(len(sequence.tokens) == 60 for sequence in sequences)


def first_hit(pieces: list[bytes], stops: tuple[bytes, ...]) -> int | None:
    """Tokens until the text first contains a stop, by the definition."""
    for length in range(1, len(pieces) + 1):
        if any(stop in b"".join(pieces[:length]) for stop in stops):
            return length
    return None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_stop_strings_across_token_borders(sampling: Sampling, natural: SampledSequence, data: st.DataObject) -> None:
    pieces = [sampling.driver.engine._generator._token_bytes[token] for token in natural.tokens]
    text = b"".join(pieces)
    start = data.draw(st.integers(0, len(text) - 2))
    stop = text[start : start + data.draw(st.integers(1, 12))]
    stops = (stop, *data.draw(st.lists(st.sampled_from([b"\xff\xfe\xfd", text[-5:], b"zzzz"]), max_size=2)))

    ours = stopped(sampling, stop_bytes=stops)

    length = first_hit(pieces, stops)
    assert length is not None
    assert_prefix(ours, natural, length, "stop")


def test_a_stop_string_spans_tokens(sampling: Sampling, natural: SampledSequence) -> None:
    """So that the property above is known to have met the case."""
    pieces = [sampling.driver.engine._generator._token_bytes[token] for token in natural.tokens]
    place = next(i for i in range(3, 25) if len(pieces[i]) > 1 and len(pieces[i + 2]) > 1)
    stop = pieces[place][-1:] + pieces[place + 1] + pieces[place + 2][:1]
    expected = first_hit(pieces, (stop,))
    assert expected == place + 3
    assert_prefix(stopped(sampling, stop_bytes=(stop,)), natural, expected, "stop")


def test_a_stop_string_that_never_comes(sampling: Sampling, natural: SampledSequence) -> None:
    assert_prefix(stopped(sampling, stop_bytes=(b"never to be seen",)), natural, 30, "length")


def test_the_prompt_is_not_searched_for_stops(sampling: Sampling, natural: SampledSequence) -> None:
    pieces = [sampling.driver.engine._generator._token_bytes[token] for token in make_prompt(10, 9)]
    stop = pieces[-1][-1:] + sampling.driver.engine._generator._token_bytes[natural.tokens[0]]
    assert_prefix(stopped(sampling, stop_bytes=(stop + b"\xff",)), natural, 30, "length")
    spanning = stopped(sampling, stop_bytes=(stop,))
    pieces_of_sample = [sampling.driver.engine._generator._token_bytes[token] for token in natural.tokens]
    assert len(spanning.tokens) == (first_hit(pieces_of_sample, (stop,)) or 30)
