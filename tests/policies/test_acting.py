"""A robot policy as a sampler: the whole prompt sees itself, and what was computed of an observation is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mint.engine.core import Datum, ExportRevision, Revision, Sample, Sampled, SampledSequence, SamplingParams
from tests.engine.conftest import EngineDriver, make_driver
from tests.policies.support import DensePolicy, picture, placed, prompt
from tests.policies.test_training import trained

PREFIX = list(range(40, 62))


def act(
    prefix: list[int] = PREFIX,
    pictures: tuple[int, ...] = (1, 2, 3),
    revision: Revision | None = None,
    **how: float,
) -> Sample:
    how = {"max_tokens": 9, "seed": 3, "temperature": 0.0, **how}
    images = placed([picture(seed) for seed in pictures])
    return Sample(revision, prompt(prefix), 1, SamplingParams(**how), images=images, whole=True)


def sequence(answer: object) -> SampledSequence:
    assert isinstance(answer, Sampled), answer
    return answer.sequences[0]


def assert_greedy(dense: DensePolicy, command: Sample, drawn: SampledSequence) -> None:
    """Token by token the likeliest of the dense model, under the mask of prefix and suffix, and its log-probability."""
    tokens = np.concatenate([command.prompt, drawn.tokens])
    blocks = np.maximum(np.arange(len(tokens)) - (len(command.prompt) - 1), 0).astype(np.int32)
    whole = Datum(tokens[:-1], {"target_tokens": drawn.tokens.astype(np.int64)}, command.images, blocks[:-1])
    logits = dense.logits(whole)[-len(drawn.tokens) :].detach()
    np.testing.assert_array_equal(drawn.tokens, logits.argmax(1))
    np.testing.assert_allclose(drawn.logprobs, logits.log_softmax(1).max(1).values, rtol=0, atol=1e-5)


@pytest.fixture
def revision(policy: EngineDriver, tmp_path: Path) -> Revision:
    trained(policy)
    policy.one(ExportRevision("run", tmp_path / "revision", key="revision"))
    return Revision("revision", tmp_path / "revision")


def test_greedy_tokens_are_the_dense_models(policy: EngineDriver, policy_dir: Path, revision: Revision) -> None:
    """Of base and revision, observations of many lengths at once; also while others decode."""
    from tests.engine.support import trainable

    dense = {None: DensePolicy(policy_dir, None), revision: DensePolicy(policy_dir, trainable(policy, "run"))}
    commands = [
        act(PREFIX[:length], (length, 2, 3), which) for length in (1, 4, 5, 9, 22) for which in (None, revision)
    ]
    for command, answer in zip(commands, policy.together(commands), strict=True):
        assert_greedy(dense[command.revision], command, sequence(answer))


def test_an_observation_is_computed_once(policy: EngineDriver, policy_dir: Path) -> None:
    """34 tokens are two full blocks of 16, and two tokens that are computed again; the answer is the same."""
    first = policy.one(act())
    again = policy.one(act())
    assert isinstance(first, Sampled)
    assert isinstance(again, Sampled)
    assert (first.cached_tokens, again.cached_tokens) == (0, 32)
    np.testing.assert_array_equal(sequence(first).tokens, sequence(again).tokens)
    np.testing.assert_allclose(sequence(first).logprobs, sequence(again).logprobs, rtol=0, atol=1e-5)
    assert_greedy(DensePolicy(policy_dir, None), act(), sequence(again))


@pytest.mark.parametrize(
    "other", [act(pictures=(1, 2, 4)), act(pictures=(2, 1, 3)), act([*PREFIX[:-1], 7]), act([*PREFIX, 7])]
)
def test_nothing_is_taken_from_another_observation(policy: EngineDriver, policy_dir: Path, other: Sample) -> None:
    """Not even the beginning that it has in common: this has seen what came behind it."""
    policy.one(act())
    answer = policy.one(other)
    assert isinstance(answer, Sampled)
    assert answer.cached_tokens == 0
    assert_greedy(DensePolicy(policy_dir, None), other, sequence(answer))


def test_a_prompt_is_not_cut_however_small_the_steps(policy_dir: Path) -> None:
    small = make_driver(policy_dir, max_batch_tokens=16, max_prefill_tokens=16)
    commands = [act(PREFIX[:length], (length, 2, 3)) for length in (3, 12, 20, 22)]
    dense = DensePolicy(policy_dir, None)
    for command, answer in zip(commands, small.together(commands), strict=True):
        assert_greedy(dense, command, sequence(answer))


def test_one_that_had_to_give_its_blocks_back_goes_on_as_before(policy_dir: Path) -> None:
    """Room for hardly two of four: prompt and what was drawn of it are computed again in one piece."""
    token_bytes = 2 * 2 * 16 * 4
    small = make_driver(policy_dir, kv_cache_bytes=7 * 16 * token_bytes)
    commands = [act(PREFIX, (seed, 2, 3), max_tokens=25) for seed in range(4)]
    returned = []
    send_back = small.engine._generator._schedule._send_back

    def counting(continuation: object) -> None:
        returned.append(continuation)
        send_back(continuation)  # type: ignore[arg-type]

    small.engine._generator._schedule._send_back = counting  # type: ignore[method-assign,assignment]
    dense = DensePolicy(policy_dir, None)
    for command, answer in zip(commands, small.together(commands), strict=True):
        assert_greedy(dense, command, sequence(answer))
    assert returned


def test_a_sample_is_told_by_its_seed_alone(policy: EngineDriver) -> None:
    alone = sequence(policy.one(act(temperature=1.0)))
    crowd = policy.together([act(pictures=(9, 9, 9), temperature=1.0, seed=1), act(temperature=1.0)])
    np.testing.assert_array_equal(alone.tokens, sequence(crowd[1]).tokens)
    np.testing.assert_allclose(alone.logprobs, sequence(crowd[1]).logprobs, rtol=0, atol=1e-5)
    other = sequence(policy.one(act(temperature=1.0, seed=4)))
    assert other.tokens.tolist() != alone.tokens.tolist()


def test_a_revision_is_the_same_when_its_run_is_gone(policy: EngineDriver, revision: Revision) -> None:
    from mint.engine.core import UnloadRun

    before = sequence(policy.one(act(revision=revision)))
    policy.one(UnloadRun("run"))
    after = sequence(policy.one(act(revision=revision)))
    np.testing.assert_array_equal(before.tokens, after.tokens)
    bare = sequence(policy.one(act()))
    assert np.abs(before.logprobs[0] - bare.logprobs[0]) > 1e-4
