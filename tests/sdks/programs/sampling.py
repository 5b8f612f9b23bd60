"""Sampling: sampled and prompt log-probabilities, seeds, many samples at once, copies in pickles."""

from __future__ import annotations

import pickle

import tinker
from tinker import types

from .common import MODEL, SECONDS, VERSION, close, datum, finish, logprobs, run_of, service, tokens_of

PICKLES_SINCE = 0, 16
TOP = 3


def main() -> None:
    client = service()
    run = run_of(client)
    sampler = run.save_weights_and_get_sampling_client("now")
    prompt = tokens_of(9, 10)
    _samples(run, sampler, prompt)
    _prompt(client, sampler, prompt)
    _many(sampler)
    if VERSION >= PICKLES_SINCE:
        copy = pickle.loads(pickle.dumps(sampler))
        assert _sample(copy, prompt, seed=3).sequences[0].tokens == _sample(sampler, prompt, seed=3).sequences[0].tokens
    finish(client)


def _sample(
    sampler: tinker.SamplingClient, prompt: list[int], num_samples: int = 1, **params: int
) -> types.SampleResponse:
    settings = types.SamplingParams(**{"max_tokens": 6, "temperature": 1.0, **params})
    return sampler.sample(types.ModelInput.from_ints(prompt), num_samples, settings).result(SECONDS)


def _samples(run: tinker.TrainingClient, sampler: tinker.SamplingClient, prompt: list[int]) -> None:
    """What was sampled has the log-probabilities that a training pass computes."""
    first, again = (_sample(sampler, prompt, 3, seed=5) for _ in range(2))
    assert [each.tokens for each in first.sequences] == [each.tokens for each in again.sequences]
    assert len(first.sequences) == 3
    for sequence in first.sequences:
        assert sequence.stop_reason in ("stop", "length")
        assert 1 <= len(sequence.tokens) == len(sequence.logprobs) <= 6
    whole = datum(prompt + list(first.sequences[0].tokens))
    (computed,) = logprobs(run.forward([whole], "cross_entropy").result(SECONDS))
    for left, right in zip(first.sequences[0].logprobs, computed[len(prompt) - 1 :], strict=True):
        close(left, right, 1e-3)


def _prompt(client: tinker.ServiceClient, sampler: tinker.SamplingClient, prompt: list[int]) -> None:
    """A fresh LoRA changes nothing, so the base model says the same."""
    tokens, settings = types.ModelInput.from_ints(prompt), types.SamplingParams(max_tokens=1)
    answer = sampler.sample(tokens, 1, settings, include_prompt_logprobs=True, topk_prompt_logprobs=TOP).result(SECONDS)
    base = client.create_sampling_client(base_model=MODEL).compute_logprobs(tokens).result(SECONDS)
    assert answer.prompt_logprobs[0] is base[0] is None
    assert answer.topk_prompt_logprobs[0] is None
    for place in range(1, len(prompt)):
        close(answer.prompt_logprobs[place], base[place], 1e-3)
        likeliest = answer.topk_prompt_logprobs[place]
        assert len(likeliest) == TOP
        assert max(value for _, value in likeliest) >= base[place] - 1e-3


def _many(sampler: tinker.SamplingClient) -> None:
    """As many at once as a rollout has, more than the client has connections."""
    settings = types.SamplingParams(max_tokens=2, seed=1)
    prompts = [tokens_of(index, 5) for index in range(60)]
    futures = [sampler.sample(types.ModelInput.from_ints(prompt), 1, settings) for prompt in prompts]
    assert all(len(future.result(SECONDS).sequences) == 1 for future in futures)
