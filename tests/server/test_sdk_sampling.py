"""Sampling through the official SDK against a live server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tinker
from transformers import AutoTokenizer

import mint
from mint import types
from mint.tiny import NAME, model_path

from .live import BOB, LiveServer
from .sdk import SECONDS, datum, logprobs_of, run_of, tokens_of, train

PROMPT = tokens_of(5, 12)


def draw(sampler: mint.SamplingClient, prompt: list[int] = PROMPT, num_samples: int = 1, **params: Any) -> Any:
    """Sample; parameters of the SDK's `sample` and of its `SamplingParams` together."""
    others = {name: params.pop(name) for name in ("include_prompt_logprobs",) if name in params}
    settings = types.SamplingParams(**{"max_tokens": 8, "stop": [], **params})
    future = sampler.sample(
        types.ModelInput.from_ints(prompt), num_samples=num_samples, sampling_params=settings, **others
    )
    return future.result(SECONDS)


def texts(result: Any) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in result.sequences]


@pytest.fixture
def base(alice: mint.ServiceClient) -> mint.SamplingClient:
    return alice.create_sampling_client(base_model=NAME).result(SECONDS)


def test_as_many_samples_as_asked_for(base: mint.SamplingClient) -> None:
    result = draw(base, num_samples=5, max_tokens=6)
    assert [len(tokens) for tokens in texts(result)] == [6] * 5
    assert {sequence.stop_reason for sequence in result.sequences} == {"length"}
    assert all(len(sequence.logprobs) == 6 for sequence in result.sequences)
    assert len({tuple(tokens) for tokens in texts(result)}) > 1
    assert len({sequence.sequence_id for sequence in result.sequences}) == 5


def test_a_seed_settles_the_sample(base: mint.SamplingClient) -> None:
    first = draw(base, num_samples=4, seed=1)
    crowd = [
        base.sample(
            types.ModelInput.from_ints(tokens_of(seed, 9)),
            num_samples=3,
            sampling_params=types.SamplingParams(max_tokens=9, seed=seed),
        )
        for seed in range(10)
    ]
    again = draw(base, num_samples=4, seed=1)
    for future in crowd:
        future.result(SECONDS)
    assert texts(first) == texts(again)
    for mine, theirs in zip(first.sequences, again.sequences, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
    assert texts(draw(base, num_samples=4, seed=2)) != texts(first)
    assert texts(draw(base, num_samples=4)) != texts(draw(base, num_samples=4))


def test_ways_to_be_greedy(base: mint.SamplingClient) -> None:
    (greedy,) = texts(draw(base, temperature=0.0))
    for params in ({"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0, "seed": 9}):
        assert texts(draw(base, num_samples=2, **params)) == [greedy] * 2


def test_a_stop_id_ends_the_sample_and_is_its_last_token(base: mint.SamplingClient) -> None:
    (greedy,) = texts(draw(base, temperature=0.0, max_tokens=20))
    stop = greedy[4]
    (stopped,) = draw(base, temperature=0.0, max_tokens=20, stop=[stop]).sequences
    assert stopped.stop_reason == "stop"
    assert list(stopped.tokens) == greedy[: greedy.index(stop) + 1]


def test_a_stop_string_ends_the_sample(base: mint.SamplingClient) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    (greedy,) = texts(draw(base, temperature=0.0, max_tokens=20))
    text = tokenizer.decode(greedy)
    stop = text[5:8]
    for form in (stop, [stop], ["never to be seen", stop]):
        (stopped,) = draw(base, temperature=0.0, max_tokens=20, stop=form).sequences
        assert stopped.stop_reason == "stop"
        ended = tokenizer.decode(stopped.tokens)
        assert stop in ended
        assert stop not in tokenizer.decode(stopped.tokens[:-1])
        assert greedy[: len(stopped.tokens)] == list(stopped.tokens)


def test_without_stop_the_models_own_end_counts(base: mint.SamplingClient) -> None:
    end = AutoTokenizer.from_pretrained(model_path()).eos_token_id
    result = draw(base, num_samples=16, max_tokens=60, temperature=2.0, seed=3, stop=None)
    for sequence in result.sequences:
        tokens = list(sequence.tokens)
        stopped = sequence.stop_reason == "stop"
        assert tokens.count(end) == stopped
        assert tokens[-1] == end if stopped else len(tokens) == 60


def test_an_end_that_is_not_asked_for_ends_nothing(base: mint.SamplingClient) -> None:
    result = draw(base, num_samples=8, max_tokens=40, temperature=2.0, stop=[])
    assert {len(tokens) for tokens in texts(result)} == {40}


# ---------------------------------------------------------------- truth


def assert_true(run: mint.TrainingClient, sampler: mint.SamplingClient) -> None:
    """A sample's log-probabilities, `compute_logprobs` and `forward` tell the same of the same tokens."""
    result = draw(sampler, num_samples=3, max_tokens=10, seed=4, include_prompt_logprobs=True)
    for sequence in result.sequences:
        whole = [*PROMPT, *sequence.tokens]
        (forward,) = logprobs_of(run.forward([datum(whole)], "cross_entropy").result(SECONDS))
        computed = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result(SECONDS)
        assert computed[0] is None
        np.testing.assert_allclose(computed[1:], forward, atol=1e-5)
        np.testing.assert_allclose(sequence.logprobs, forward[len(PROMPT) - 1 :], atol=1e-5)
        assert result.prompt_logprobs[0] is None
        np.testing.assert_allclose(result.prompt_logprobs[1:], forward[: len(PROMPT) - 1], atol=1e-5)


def test_the_base_model_tells_what_a_fresh_run_tells(alice: mint.ServiceClient, base: mint.SamplingClient) -> None:
    assert_true(run_of(alice), base)


def test_a_trained_run_and_its_sampler_tell_the_same(alice: mint.ServiceClient, base: mint.SamplingClient) -> None:
    run = run_of(alice)
    train(run, 0, 3)
    unnamed = run.save_weights_and_get_sampling_client().result(SECONDS)
    path = run.save_weights_for_sampler("three").result(SECONDS).path
    named = alice.create_sampling_client(model_path=path).result(SECONDS)
    state = run.save_state("three").result(SECONDS).path
    assert "/sampler_weights/" in path
    for sampler in (unnamed, named, alice.create_sampling_client(model_path=state).result(SECONDS)):
        assert_true(run, sampler)
    assert texts(draw(named, seed=1)) == texts(draw(unnamed, seed=1))

    before = draw(named, seed=1, num_samples=3)
    train(run, 3, 3)
    after = draw(named, seed=1, num_samples=3)
    assert texts(before) == texts(after)
    for mine, theirs in zip(before.sequences, after.sequences, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
    assert_true(run, run.save_weights_and_get_sampling_client().result(SECONDS))


def test_the_last_of_the_prompt_only(base: mint.SamplingClient) -> None:
    prompt = types.ModelInput.from_ints(PROMPT)
    whole = base.compute_logprobs(prompt).result(SECONDS)
    last = base.compute_logprobs(prompt, prompt_logprobs_last_n=3).result(SECONDS)
    assert last[:-3] == [None] * (len(PROMPT) - 3)
    np.testing.assert_allclose(last[-3:], whole[-3:], atol=1e-5)


# ---------------------------------------------------------------- what goes wrong


def test_refusals_reach_the_user(alice: mint.ServiceClient, base: mint.SamplingClient, live: LiveServer) -> None:
    for prompt, params, named in (
        ([100_000], {}, "prompt"),
        (list(range(5, 5 + 2050)), {}, "prompt"),
        (PROMPT, {"max_tokens": 5000}, "max_tokens"),
        (PROMPT, {"stop": [100_000]}, "stop"),
    ):
        with pytest.raises(tinker.BadRequestError, match=named):
            draw(base, prompt, **params)
    with pytest.raises(tinker.NotFoundError, match="model_path"):
        alice.create_sampling_client(model_path="tinker://nobody:train:0/weights/a").result(SECONDS)
    with pytest.raises(tinker.BadRequestError, match="model_path"):
        alice.create_sampling_client(model_path="tinker://nobody", base_model=NAME).result(SECONDS)
    mine = base._sampling_session_id
    assert live.get(f"samplers/{mine}").json()["base_model"] == NAME
    assert live.get(f"samplers/{mine}", key=BOB).status_code == 403
    assert len(texts(draw(base))) == 1
