"""What is asked about prompts: log-probabilities of their tokens, of others, the likeliest, alternatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mint.engine.core import PromptAnswer, PromptQuery, Sampled
from mint.engine.sampling import exponentials
from tests.engine.conftest import make_driver
from tests.engine.sampling_support import (
    BOUND,
    SAME,
    TOKEN_BYTES,
    VOCAB,
    Sampling,
    assert_all_free,
    assert_drawn_from,
    assert_same,
    make_prompt,
)

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Distributions = Callable[[np.ndarray], torch.Tensor]


@pytest.fixture(scope="module")
def logits_of(qwen_dir: Path) -> Distributions:
    """(L − 1, V): transformers' logits of what follows each token but the last."""
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)

    @torch.no_grad()
    def logits_of(prompt: np.ndarray) -> torch.Tensor:
        return base(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, :-1].double()

    return logits_of


@pytest.mark.parametrize("run", ["base", "a", "b"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_prompt_logprobs(sampling: Sampling, run: str, length: int) -> None:
    prompt = make_prompt(20 + length, length)
    command = replace(sampling.command(run, prompt, 3), query=PromptQuery(last=999))
    others = [sampling.command("a", make_prompt(21, 13)), replace(command, revision=None)]
    result, *_ = sampling.driver.together([command, *others])
    assert result.prompt.logprobs.dtype == np.float32
    assert result.prompt.logprobs.shape == (length,)
    assert np.isnan(result.prompt.logprobs[0])
    if length > 1:
        expected = sampling.trainer_logprobs(run, prompt)
        np.testing.assert_allclose(result.prompt.logprobs[1:], expected, rtol=0, atol=BOUND)
    assert sampling.driver.one(replace(command, query=PromptQuery())).prompt.logprobs is None


def test_nothing_is_answered_that_was_not_asked(sampling: Sampling) -> None:
    answer = sampling.driver.one(sampling.command("a", make_prompt(0, 9), 2))
    assert answer.prompt == PromptAnswer()


@pytest.mark.parametrize("last", [0, 1, 7, 29, 30, 31, 999])
@pytest.mark.parametrize("top", [0, 4])
def test_the_last_positions(sampling: Sampling, logits_of: Distributions, last: int, top: int) -> None:
    """Position t is told by the token before it, so of 30 tokens there are 29; others are empty."""
    prompt = make_prompt(1, 30)
    answer = sampling.driver.one(sampling.command("base", prompt, query=PromptQuery(last=last, top=top))).prompt
    expected = torch.log_softmax(logits_of(prompt), dim=1)
    asked = min(last, 29)
    if last:
        own = expected.gather(1, torch.from_numpy(prompt[1:, None].astype(np.int64)))[:, 0].numpy()
        assert np.isnan(answer.logprobs[: 30 - asked]).all()
        np.testing.assert_allclose(answer.logprobs[30 - asked :], own[29 - asked :], rtol=0, atol=BOUND)
    else:
        assert answer.logprobs is None
    if top:
        values, tokens = expected.topk(top, dim=1)
        assert answer.top.tokens.shape == answer.top.logprobs.shape == (30, top)
        assert (answer.top.tokens[: 30 - asked] == -1).all()
        assert (answer.top.logprobs[: 30 - asked] == -np.inf).all()
        np.testing.assert_array_equal(answer.top.tokens[30 - asked :], tokens[29 - asked :].numpy())
        np.testing.assert_allclose(answer.top.logprobs[30 - asked :], values[29 - asked :], rtol=0, atol=BOUND)


def test_more_likeliest_tokens_than_there_are(sampling: Sampling) -> None:
    query = PromptQuery(last=1, top=VOCAB + 3)
    top = sampling.driver.one(sampling.command("base", make_prompt(1, 5), query=query)).prompt.top
    assert sorted(top.tokens[-1, :VOCAB]) == list(range(VOCAB))
    assert (top.tokens[-1, VOCAB:] == -1).all()
    assert (top.logprobs[-1, VOCAB:] == -np.inf).all()


@pytest.mark.parametrize("length", [1, 2, 35])
def test_targets(sampling: Sampling, logits_of: Distributions, length: int) -> None:
    prompt = make_prompt(2, length)
    targets = np.random.default_rng(3).integers(-1, VOCAB, (length - 1, 6))
    targets[:, 0], targets[::2, 1] = prompt[1:], -1
    command = sampling.command("base", prompt, 2, query=PromptQuery(targets=targets))
    answer = sampling.driver.one(command).prompt
    assert answer.targets.shape == targets.shape
    assert answer.targets.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(answer.targets), targets < 0)
    if length > 1:
        logprobs = torch.log_softmax(logits_of(prompt), dim=1).numpy()
        expected = np.where(targets < 0, np.nan, np.take_along_axis(logprobs, targets.clip(0), axis=1))
        np.testing.assert_allclose(answer.targets, expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_alternatives_have_the_distribution(sampling: Sampling, logits_of: Distributions, temperature: float) -> None:
    """At each position by itself, with replacement; tokens that are seldom drawn are counted as one."""
    prompt, count = make_prompt(4, 4), 4000
    command = sampling.command("base", prompt, query=PromptQuery(alternatives=count), temperature=temperature)
    drawn = sampling.driver.one(command).prompt.alternatives
    assert drawn.tokens.shape == drawn.logprobs.shape == (3, count)
    expected = torch.log_softmax(logits_of(prompt) / temperature, dim=1).numpy()
    np.testing.assert_allclose(drawn.logprobs, np.take_along_axis(expected, drawn.tokens, axis=1), rtol=0, atol=SAME)
    for tokens, logprobs in zip(drawn.tokens, expected, strict=True):
        counts, chances = np.bincount(tokens, minlength=VOCAB), np.exp(logprobs)
        likely = chances * count >= 5
        merged = np.append(counts[likely], counts[~likely].sum()), np.append(chances[likely], chances[~likely].sum())
        assert_drawn_from(*merged)


def test_no_noise_is_used_twice(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by two alternatives, nor by an alternative and a sample of the same number at the same position."""
    used: list[tuple[int, ...]] = []

    def noted(seeds: list[int], samples: list[int], positions: list[int], heat: int, count: int) -> np.ndarray:
        used.extend(zip(seeds, samples, positions, [heat] * len(seeds), strict=True))
        return exponentials(seeds, samples, positions, heat, count)

    monkeypatch.setattr("mint.engine.sampling.exponentials", noted)
    query = PromptQuery(alternatives=3)
    sampling.driver.one(sampling.command("a", make_prompt(3, 6), 4, query=query, max_tokens=8))
    assert len(used) == 2 * (5 * 3 + 4 * 8)
    assert len(set(used)) == len(used)


def test_alternatives_hold_with_their_seed(sampling: Sampling) -> None:
    command = sampling.command("a", make_prompt(5, 20), query=PromptQuery(alternatives=5))
    one, again = (sampling.driver.one(command).prompt.alternatives for _ in range(2))
    np.testing.assert_array_equal(one.tokens, again.tokens)
    other = sampling.driver.one(replace(command, params=replace(command.params, seed=4))).prompt.alternatives
    assert (one.tokens != other.tokens).mean() > 0.5
    fewer = sampling.driver.one(replace(command, query=PromptQuery(alternatives=3))).prompt.alternatives
    np.testing.assert_array_equal(fewer.tokens, one.tokens[:, :3])


def test_greedy_alternatives_are_the_likeliest_token(sampling: Sampling, logits_of: Distributions) -> None:
    prompt = make_prompt(6, 12)
    command = sampling.command("base", prompt, query=PromptQuery(alternatives=2), temperature=0.0)
    drawn = sampling.driver.one(command).prompt.alternatives
    values, tokens = torch.log_softmax(logits_of(prompt), dim=1).max(dim=1)
    for place in range(2):
        np.testing.assert_array_equal(drawn.tokens[:, place], tokens)
        np.testing.assert_allclose(drawn.logprobs[:, place], values, rtol=0, atol=BOUND)


def test_scores_are_of_the_model_whatever_the_sample_is_drawn_at(sampling: Sampling) -> None:
    query = PromptQuery(last=9, top=3, targets=np.arange(22).reshape(11, 2))
    plain = sampling.command("a", make_prompt(7, 12), query=query)
    filtered = replace(plain, params=replace(plain.params, temperature=0.4, top_k=2, top_p=0.5))
    expected = sampling.driver.one(plain)
    assert_same(replace(sampling.driver.one(filtered), sequences=()), replace(expected, sequences=()), BOUND)


QUERIES = [
    PromptQuery(last=999, top=3),
    PromptQuery(last=5),
    PromptQuery(targets=np.random.default_rng(0).integers(-1, VOCAB, (36, 3))),
    PromptQuery(last=12, top=2, targets=np.random.default_rng(1).integers(-1, VOCAB, (36, 1)), alternatives=4),
]


@pytest.mark.parametrize("query", QUERIES, ids=["all", "last", "targets", "everything"])
@pytest.mark.parametrize("num_samples", [1, 5])
def test_in_pieces_after_hits_and_under_preemption(
    sampling: Sampling, qwen_dir: Path, query: PromptQuery, num_samples: int
) -> None:
    """Pieces of 8 tokens in memory for hardly two, beside others that ask about the same prompt and a longer one."""
    driver = make_driver(
        qwen_dir, kv_block_size=4, kv_cache_bytes=18 * 4 * TOKEN_BYTES, max_batch_tokens=8, max_prefill_tokens=8
    )
    prompt = make_prompt(8, 37)
    command = sampling.command("a", prompt, num_samples, query=query, max_tokens=7)
    beside = [
        sampling.command("a", prompt[:30], max_tokens=9),
        command,
        replace(command, query=PromptQuery(last=2)),
        sampling.command("b", prompt, 2, max_tokens=20, query=PromptQuery(last=30)),
        replace(command, revision=None),
    ]
    expected = [sampling.driver.one(other) for other in beside]
    for _ in range(2):
        for ours, theirs in zip(driver.together(beside), expected, strict=True):
            assert_same(ours, theirs)
    assert_all_free(driver)


def test_chunks_of_logits_do_not_show(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that computes three rows at a time."""
    command = sampling.command("a", make_prompt(9, 37), query=QUERIES[3])
    expected = sampling.driver.one(command)
    monkeypatch.setattr("mint.models.logprobs.CHUNK_ELEMENTS", 3 * VOCAB)
    ours = sampling.driver.one(command)
    assert isinstance(ours, Sampled)
    assert_same(ours, expected)
