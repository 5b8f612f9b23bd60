"""Samples: their log-probabilities, greedy ones, their reproducibility."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.engine.blocks import BlockPool
from mint.engine.core import CreateRun, OptimStep
from mint.engine.sampling import BUCKET, exponentials
from mint.errors import MintError
from mint.models.attention import PackedCausal
from tests.engine.conftest import make_driver, shape
from tests.engine.sampling_support import BOUND, Sampling, assert_all_free, assert_same, generated, make_prompt
from tests.engine.support import LARGE_STEPS, policy_pass, trainable

pytestmark = pytest.mark.usefixtures("nothing_leaks")


# --- log-probabilities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["base", "a", "b"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 70], ids=lambda n: f"prompt of {n}")
def test_logprobs_are_the_trainers(sampling: Sampling, run: str, length: int) -> None:
    prompt = make_prompt(length, length)
    result = sampling.driver.one(sampling.command(run, prompt, 2, max_tokens=40))
    for sequence in result.sequences:
        assert sequence.tokens.dtype == np.int32
        assert sequence.logprobs.dtype == np.float32
        assert len(sequence.tokens) == len(sequence.logprobs) == 40
        expected = sampling.trainer_logprobs(run, np.concatenate([prompt, sequence.tokens]))
        np.testing.assert_allclose(sequence.logprobs, expected[length - 1 :], rtol=0, atol=BOUND)


def test_logprobs_in_a_crowd(sampling: Sampling) -> None:
    """Many requests of different lengths, adapters and parameters at once: each as if it were alone."""
    rng = np.random.default_rng(0)
    crowd = [
        sampling.command(
            ["base", "a", "b"][i % 3],
            make_prompt(i, int(rng.integers(1, 80))),
            num_samples=int(rng.integers(1, 4)),
            max_tokens=int(rng.integers(1, 50)),
            seed=i,
            temperature=[1.0, 0.7, 0.0][i % 5 % 3],
            top_k=[-1, 5][i % 2],
            top_p=[1.0, 0.9][i % 7 % 2],
        )
        for i in range(24)
    ]
    expected = [sampling.driver.one(command) for command in crowd]
    for ours, theirs in zip(sampling.driver.together(crowd), expected, strict=True):
        assert_same(ours, theirs)
    for command, result in zip(crowd, expected, strict=True):
        if command.params.temperature == 1.0 and command.params.top_k == -1 and command.params.top_p == 1.0:
            run = next(name for name, revision in sampling.revisions.items() if revision == command.revision)
            for sequence in result.sequences:
                whole = np.concatenate([command.prompt, sequence.tokens])
                logprobs = sampling.trainer_logprobs(run, whole)[len(command.prompt) - 1 :]
                np.testing.assert_allclose(sequence.logprobs, logprobs, rtol=0, atol=BOUND)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["base", "a", "b"]),
            st.integers(1, 70),
            st.integers(1, 3),
            st.integers(1, 20),
            st.sampled_from([0.0, 0.5, 1.0]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_mixture_equals_one_by_one(sampling: Sampling, requests: list[tuple[str, int, int, int, float]]) -> None:
    commands = [
        sampling.command(run, make_prompt(length, length), n, max_tokens=max_tokens, temperature=temperature)
        for run, length, n, max_tokens, temperature in requests
    ]
    expected = [sampling.driver.one(command) for command in commands]
    for ours, theirs in zip(sampling.driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(sampling.driver)


def test_sampling_beside_training(sampling: Sampling) -> None:
    rng = np.random.default_rng(1)
    command = sampling.command("a", make_prompt(1, 20), 3, max_tokens=30)
    expected = sampling.driver.one(command)
    training = [policy_pass("base", [30, 4], "cross_entropy", rng, forward_only=True) for _ in range(10)]
    assert_same(sampling.driver.together([command, *training])[0], expected)


# --- greedy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 20, 64])
def test_greedy_is_what_transformers_generates(sampling: Sampling, qwen_dir: Path, length: int) -> None:
    prompt = make_prompt(length, length)
    result = sampling.driver.one(sampling.command("base", prompt, 2, max_tokens=40, temperature=0.0))
    for sequence in result.sequences:
        np.testing.assert_array_equal(sequence.tokens, generated(qwen_dir, prompt, 40))
        expected = sampling.trainer_logprobs("base", np.concatenate([prompt, sequence.tokens]))
        np.testing.assert_allclose(sequence.logprobs, expected[length - 1 :], rtol=0, atol=BOUND)


# --- seeds --------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_tokens_in_another_engine(sampling: Sampling, qwen_dir: Path) -> None:
    other = make_driver(qwen_dir, kv_block_size=16, max_decode_batch=2)
    command = sampling.command("a", make_prompt(5, 33), 5, max_tokens=30)
    expected = sampling.driver.one(command)
    assert_same(other.one(command), expected)
    assert_all_free(other)


def test_samples_of_one_seed_differ_and_seeds_differ(sampling: Sampling) -> None:
    prompt = make_prompt(6, 12)
    eight = sampling.driver.one(sampling.command("base", prompt, 8, max_tokens=10)).sequences
    assert len({tuple(sequence.tokens) for sequence in eight}) == 8
    other = sampling.driver.one(sampling.command("base", prompt, 8, max_tokens=10, seed=4)).sequences
    assert not {tuple(s.tokens) for s in eight} & {tuple(s.tokens) for s in other}


def test_fewer_samples_are_the_first_of_more(sampling: Sampling) -> None:
    prompt = make_prompt(7, 12)
    three = sampling.driver.one(sampling.command("base", prompt, 3))
    eight = sampling.driver.one(sampling.command("base", prompt, 8))
    assert_same(three, replace(eight, sequences=eight.sequences[:3]))


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, 2**70])
def test_any_integer_is_a_seed(sampling: Sampling, seed: int) -> None:
    command = sampling.command("base", make_prompt(8, 3), seed=seed)
    assert_same(sampling.driver.one(command), sampling.driver.one(command), 0)


def test_the_trainer_goes_on_from_where_sampling_found_it(sampling: Sampling, qwen_dir: Path) -> None:
    """Sampling in between passes changes no step."""
    rng = [np.random.default_rng(2), np.random.default_rng(2)]
    steps = []
    for which in range(2):
        driver = make_driver(qwen_dir)
        driver.one(CreateRun("run", shape()))
        for _ in range(2):
            driver.one(policy_pass("run", [8], "cross_entropy", rng[which]))
            if which:
                driver.one(sampling.command("base", make_prompt(0, 5)))
            driver.one(OptimStep("run", LARGE_STEPS))
        steps.append(trainable(driver, "run").adapter.flat)
    assert torch.equal(*steps)


def test_a_request_that_breaks_a_step_fails_alone(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commands = [sampling.command("a", make_prompt(i, 9 + i), 2, max_tokens=10) for i in range(4)]
    expected = sampling.driver.together(commands)
    model = sampling.driver.engine._generator._model
    compute = model.hidden_states

    def breaking(tokens: torch.Tensor, positions: torch.Tensor, *rest: object) -> torch.Tensor:
        if (tokens[positions == 5] == int(commands[2].prompt[5])).any():
            raise RuntimeError("no memory")
        return compute(tokens, positions, *rest)

    monkeypatch.setattr(model, "hidden_states", breaking)
    monkeypatch.setattr(sampling.driver.engine._generator._schedule, "pool", BlockPool(1000))  # that remembers nothing
    answers = sampling.driver.together(commands)
    assert isinstance(answers[2], MintError)
    assert "no memory" in str(answers[2])
    for place in (0, 1, 3):
        assert_same(answers[place], expected[place])


def test_tokens_are_those_that_the_noise_selects(sampling: Sampling) -> None:
    """Noise of (seed, sample, place in the sample), and nothing else: not the prompt, not the batch."""
    prompt, model = make_prompt(12, 20), sampling.driver.engine._generator._model
    command = sampling.command("base", prompt, 2, max_tokens=6, seed=99)
    for index, sequence in enumerate(sampling.driver.one(command).sequences):
        tokens = torch.from_numpy(np.concatenate([prompt, sequence.tokens]).astype(np.int64))
        with torch.no_grad():
            hidden = model.hidden_states(tokens, torch.arange(len(tokens)), PackedCausal([len(tokens)]), [])
            logits = model.head.logits(hidden, [])[len(prompt) - 1 : -1]
        probabilities = logits.double().softmax(dim=1).numpy().reshape(6, -1, BUCKET)
        buckets = exponentials([99] * 6, [index] * 6, list(range(6)), 0, probabilities.shape[1])
        within = exponentials([99] * 6, [index] * 6, list(range(6)), 1, BUCKET)
        for place, token in enumerate(sequence.tokens.tolist()):
            bucket = int(np.argmax(probabilities[place].sum(axis=1) / buckets[place]))
            assert token == bucket * BUCKET + int(np.argmax(probabilities[place, bucket] / within[place]))
