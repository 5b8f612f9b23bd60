"""Runs that share a batch share nothing else: each gets what it would have got alone, failures included."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.engine.core import (
    AdamParams,
    Command,
    CreateRun,
    ForwardBackward,
    LoraShape,
    OptimStep,
    Passed,
    RunReady,
    Sample,
    Sampled,
    SamplingParams,
    Stepped,
    Unloaded,
    UnloadRun,
)
from mint.engine.losses import LOSSES
from mint.errors import BadRequestError, MintError, NotFoundError
from mint.models.causal_lm import CausalLM
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import (
    LARGE_STEPS,
    assert_same_gradients,
    assert_same_pass,
    export,
    gradients,
    policy_pass,
    trainable,
    trained_run,
    weights,
)

BOUND = 5e-6
"""Of log-probabilities (absolute) and of gradients (relative to the largest): the order of sums differs."""

SHAPES: dict[str, LoraShape] = {
    "a": shape(4),
    "b": shape(16),
    "c": shape(8, train_unembed=False),
    "d": shape(2, train_attn=False),
}
LOSS_OF = {"a": "cross_entropy", "b": "importance_sampling", "c": "ppo", "d": "cross_entropy"}


@pytest.fixture(scope="module")
def shared(qwen_dir: Path) -> EngineDriver:
    """Trained runs a, b, c, d. Tests may accumulate gradients; they start by clearing them."""
    driver = make_driver(qwen_dir)
    train_all(driver)
    return driver


def train_all(driver: EngineDriver) -> None:
    for seed, (run, lora) in enumerate(SHAPES.items()):
        trained_run(driver, run, lora, seed)


def clear_gradients(driver: EngineDriver) -> None:
    for run in SHAPES:
        trainable(driver, run).gradients.zero_()


def make_passes(seed: int = 0, *, forward_only: bool = False) -> dict[str, ForwardBackward]:
    rng = np.random.default_rng(seed)
    lengths = {"a": [9, 3, 9], "b": [17], "c": [1, 30, 2, 2], "d": [9, 5]}
    return {run: policy_pass(run, lengths[run], LOSS_OF[run], rng, forward_only=forward_only) for run in SHAPES}


def test_together_equals_alone_in_an_engine_of_its_own(shared: EngineDriver, qwen_dir: Path) -> None:
    clear_gradients(shared)
    passes = make_passes()
    together = dict(zip(passes, shared.together(passes.values()), strict=True))
    for seed, (run, lora) in enumerate(SHAPES.items()):
        own = make_driver(qwen_dir)
        trained_run(own, run, lora, seed)
        assert torch.equal(weights(own, run), weights(shared, run))
        assert_same_pass(together[run], own.one(passes[run]), BOUND)
        assert_same_gradients(gradients(shared, run), gradients(own, run), BOUND)


def test_forward_only_passes_beside_training_passes(shared: EngineDriver) -> None:
    training, evaluation = make_passes(1), make_passes(2, forward_only=True)
    clear_gradients(shared)
    alone = {run: (shared.one(training[run]), gradients(shared, run)) for run in SHAPES}
    alone_evaluated = {run: shared.one(evaluation[run]) for run in SHAPES}
    clear_gradients(shared)

    mixed = [command for run in SHAPES for command in (evaluation[run], training[run])]
    answers = shared.together(mixed)

    for place, run in enumerate(SHAPES):
        assert_same_pass(answers[2 * place], alone_evaluated[run], BOUND)
        assert_same_pass(answers[2 * place + 1], alone[run][0], BOUND)
        assert_same_gradients(gradients(shared, run), alone[run][1], BOUND)


def test_a_forward_only_pass_has_the_numbers_of_a_training_pass_and_leaves_no_gradient(
    shared: EngineDriver,
) -> None:
    clear_gradients(shared)
    for run, command in make_passes(3).items():
        seen = shared.one(replace(command, forward_only=True))
        assert not gradients(shared, run).any()
        assert_same_pass(seen, shared.one(command), 1e-6)


def test_passes_of_one_run_accumulate(shared: EngineDriver) -> None:
    clear_gradients(shared)
    first, second = make_passes(4)["b"], make_passes(5)["b"]
    shared.one(first)
    expected = gradients(shared, "b")
    clear_gradients(shared)
    shared.one(second)
    expected += gradients(shared, "b")
    clear_gradients(shared)
    shared.together([first, second])
    assert_same_gradients(gradients(shared, "b"), expected, BOUND)


def test_micro_batches_change_nothing(shared: EngineDriver, qwen_dir: Path) -> None:
    small = make_driver(qwen_dir, max_batch_tokens=10)
    train_all(small)
    clear_gradients(shared)
    passes = make_passes(6)
    expected = shared.together(passes.values())
    for ours, theirs in zip(small.together(passes.values()), expected, strict=True):
        assert_same_pass(ours, theirs, BOUND)
    for run in SHAPES:
        assert_same_gradients(gradients(small, run), gradients(shared, run), BOUND)


@st.composite
def mixtures(draw: st.DrawFn) -> list[ForwardBackward]:
    """Passes of several runs with any lengths, a run perhaps more than once."""
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    runs = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=4))
    lengths = st.lists(st.integers(1, 24), min_size=1, max_size=3)
    return [
        policy_pass(run, draw(lengths), draw(st.sampled_from(sorted(LOSSES))), rng, forward_only=False) for run in runs
    ]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(passes=mixtures(), max_batch_tokens=st.sampled_from([7, 8192]))
def test_any_mixture_equals_one_by_one(
    shared: EngineDriver, passes: list[ForwardBackward], max_batch_tokens: int
) -> None:
    clear_gradients(shared)
    expected = [shared.one(command) for command in passes]
    sums = {command.run_id: gradients(shared, command.run_id) for command in passes}
    clear_gradients(shared)
    shared.engine._trainer._max_batch_tokens = max_batch_tokens
    try:
        answers = shared.together(passes)
    finally:
        shared.engine._trainer._max_batch_tokens = 8192
    for ours, theirs in zip(answers, expected, strict=True):
        assert_same_pass(ours, theirs, 2e-5)
    for run, gradient in sums.items():
        assert_same_gradients(gradients(shared, run), gradient, 2e-5)


def test_a_tenants_optimizer_step_leaves_the_others_bit_for_bit(shared: EngineDriver) -> None:
    clear_gradients(shared)
    shared.together(make_passes(7).values())
    before = {run: (weights(shared, run), gradients(shared, run)) for run in SHAPES}

    shared.one(OptimStep("a", AdamParams(learning_rate=1e-2, weight_decay=0.5)))

    assert not gradients(shared, "a").any()
    assert not torch.equal(weights(shared, "a"), before["a"][0])
    for run in ("b", "c", "d"):
        assert torch.equal(weights(shared, run), before[run][0])
        assert torch.equal(gradients(shared, run), before[run][1])


def test_steps_between_passes_are_seen_by_their_own_run_only(qwen_dir: Path) -> None:
    """Whole training loops, queued at once, equal the same loops run after one another."""

    def loop(run: str) -> list[Command]:
        rng = np.random.default_rng(ord(run))
        steps = []
        for length in (5, 11, 8):
            steps += [policy_pass(run, [length, 4], "cross_entropy", rng), OptimStep(run, LARGE_STEPS)]
        return [CreateRun(run, SHAPES[run]), *steps]

    together, apart = make_driver(qwen_dir), make_driver(qwen_dir)
    queued = [command for commands in zip(*(loop(run) for run in SHAPES), strict=True) for command in commands]
    answers = together.together(queued)
    for run in SHAPES:
        expected = [apart.one(command) for command in loop(run)]
        own = [answers[i] for i, command in enumerate(queued) if command.run_id == run]
        for ours, theirs in zip(own, expected, strict=True):
            if isinstance(theirs, Passed):
                assert_same_pass(ours, theirs, 1e-4)
            elif isinstance(theirs, Stepped):
                assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4)
            else:
                assert isinstance(ours, RunReady)


# --- revisions ----------------------------------------------------------------------------------------------


def sample_command(revision: object, max_tokens: int = 24) -> Sample:
    prompt = np.arange(10, 27, dtype=np.int32)
    return Sample(revision, prompt, 2, SamplingParams(max_tokens=max_tokens, seed=11))


def assert_same_samples(ours: object, expected: object) -> None:
    assert isinstance(ours, Sampled), ours
    assert isinstance(expected, Sampled), expected
    for a, b in zip(ours.sequences, expected.sequences, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-5)
        assert a.stop_reason == b.stop_reason


@pytest.mark.parametrize("revision_cache_bytes", [512 << 20, 0], ids=["kept in memory", "read from disk"])
def test_a_revision_stays_as_it_was_while_its_run_trains_on(
    qwen_dir: Path, tmp_path: Path, revision_cache_bytes: int
) -> None:
    driver = make_driver(qwen_dir, revision_cache_bytes=revision_cache_bytes)
    trained_run(driver, "run", shape())
    revision = export(driver, "run", tmp_path / "revision")
    expected = driver.one(sample_command(revision))
    rng = np.random.default_rng(8)
    training: list[Command] = []
    for _ in range(3):
        training += [policy_pass("run", [9, 14], "cross_entropy", rng), OptimStep("run", LARGE_STEPS)]

    during, *_ = driver.together([sample_command(revision), *training])  # in turns, token by token
    after = driver.one(sample_command(revision))
    moved = driver.one(sample_command(export(driver, "run", tmp_path / "later")))

    assert_same_samples(during, expected)
    assert_same_samples(after, expected)
    assert not np.array_equal(moved.sequences[0].logprobs, expected.sequences[0].logprobs)


def test_sampling_an_old_revision_does_not_change_the_trainer(qwen_dir: Path, tmp_path: Path) -> None:
    driver = make_driver(qwen_dir)
    trained_run(driver, "run", shape())
    old = export(driver, "run", tmp_path / "old")
    rng = np.random.default_rng(9)
    driver.one(policy_pass("run", [9], "cross_entropy", rng))
    driver.one(OptimStep("run", LARGE_STEPS))
    driver.one(policy_pass("run", [9], "cross_entropy", rng))
    before, pending = weights(driver, "run"), gradients(driver, "run")
    assert pending.any()

    driver.one(sample_command(old))

    assert torch.equal(weights(driver, "run"), before)
    assert torch.equal(gradients(driver, "run"), pending)


# --- failures -----------------------------------------------------------------------------------------------


def test_a_pass_of_an_unknown_run_fails_alone(shared: EngineDriver) -> None:
    clear_gradients(shared)
    passes = make_passes(10)
    expected = {run: (shared.one(passes[run]), gradients(shared, run)) for run in SHAPES}
    clear_gradients(shared)

    stranger = replace(passes["a"], run_id="stranger")
    unknown, *others = shared.together([stranger, *passes.values()])

    assert isinstance(unknown, NotFoundError)
    assert "stranger" in str(unknown)
    for run, answer in zip(SHAPES, others, strict=True):
        assert_same_pass(answer, expected[run][0], BOUND)
        assert_same_gradients(gradients(shared, run), expected[run][1], BOUND)


def test_every_command_of_an_unknown_run_is_refused(driver: EngineDriver, tmp_path: Path) -> None:
    (refusal,) = driver.together([OptimStep("stranger", AdamParams())])
    assert isinstance(refusal, NotFoundError)
    assert driver.one(UnloadRun("stranger")) == Unloaded()


def fail_for(loss_fn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("this loss is broken")

    monkeypatch.setitem(LOSSES, loss_fn, fails)


def test_a_pass_that_fails_in_its_forward_fails_alone(shared: EngineDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_gradients(shared)
    passes = make_passes(11)
    healthy = [run for run in SHAPES if LOSS_OF[run] != "ppo"]
    expected = {run: (shared.one(passes[run]), gradients(shared, run)) for run in healthy}
    clear_gradients(shared)
    fail_for("ppo", monkeypatch)

    answers = dict(zip(passes, shared.together(passes.values()), strict=True))

    assert isinstance(answers["c"], MintError)
    assert "this loss is broken" in str(answers["c"])
    assert not gradients(shared, "c").any()
    for run in healthy:
        assert_same_pass(answers[run], expected[run][0], BOUND)
        assert_same_gradients(gradients(shared, run), expected[run][1], BOUND)


def test_a_mis_sized_input_fails_alone(shared: EngineDriver) -> None:
    """The server refuses such input before it gets here; the engine does not rely on it."""
    clear_gradients(shared)
    passes = make_passes(12)
    datum = passes["a"].data[0]
    broken = replace(datum, loss_inputs={**datum.loss_inputs, "weights": np.ones(2, np.float32)})
    passes["a"] = replace(passes["a"], data=(broken,))
    answers = dict(zip(passes, shared.together(passes.values()), strict=True))
    assert isinstance(answers["a"], MintError)
    assert all(isinstance(answers[run], Passed) for run in "bcd")


def test_a_failing_forward_only_pass_fails_alone_in_any_micro_batch(
    qwen_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(qwen_dir, max_batch_tokens=100)
    driver.engine._trainer._max_batch_tokens = 10
    train_all(driver)
    passes = make_passes(13, forward_only=True)
    expected = {run: driver.one(passes[run]) for run in SHAPES}
    fail_for("ppo", monkeypatch)
    answers = dict(zip(passes, driver.together(passes.values()), strict=True))
    assert isinstance(answers.pop("c"), MintError)
    for run, answer in answers.items():
        assert_same_pass(answer, expected[run], BOUND)


@pytest.mark.parametrize("where", ["a later micro-batch", "the backward pass"])
@pytest.mark.parametrize("earlier", [False, True], ids=["on no gradients", "on gradients of an earlier pass"])
def test_a_failure_after_gradients_have_flowed_is_undone_and_fails_alone(
    qwen_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str, earlier: bool
) -> None:
    driver = make_driver(qwen_dir, max_batch_tokens=100)
    train_all(driver)
    if earlier:
        driver.together(make_passes(13).values())
    before = gradients(driver, "c")
    passes = make_passes(14)
    alone = make_driver(qwen_dir, max_batch_tokens=100)
    train_all(alone)
    if earlier:
        alone.together(make_passes(13).values())
    expected = {run: alone.one(passes[run]) for run in "abd"}
    if where == "a later micro-batch":
        driver.engine._trainer._max_batch_tokens = 10
        fail_for("ppo", monkeypatch)
    else:
        add = LOSSES["ppo"]

        def fails_backwards(*arguments: object) -> torch.Tensor:
            terms = add(*arguments)
            terms.register_hook(raise_now)
            return terms

        monkeypatch.setitem(LOSSES, "ppo", fails_backwards)
    answers = dict(zip(passes, driver.together(passes.values()), strict=True))
    assert isinstance(answers["c"], MintError)
    assert torch.equal(gradients(driver, "c"), before)
    for run in "abd":
        assert_same_pass(answers[run], expected[run], BOUND)
        assert_same_gradients(gradients(driver, run), gradients(alone, run), BOUND)


def raise_now(_: torch.Tensor) -> None:
    raise RuntimeError("the backward is broken")


def test_a_failed_batch_frees_its_activations_before_the_retry(
    shared: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory is the likeliest failure: the retry must not find the memory still taken."""
    alive: list[int] = []
    watched: list[Callable[[], object]] = []
    original = CausalLM._forward

    def watch(self: CausalLM, *arguments: object) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in watched))
        result = original(self, *arguments)
        watched.append(weakref.ref(result))
        return result

    monkeypatch.setattr(CausalLM, "_forward", watch)
    fail_for("ppo", monkeypatch)
    clear_gradients(shared)
    shared.together(make_passes(15).values())
    assert len(alive) == 1 + len(SHAPES)
    assert alive[1] == 0


def test_a_tenant_whose_weights_are_not_numbers_spoils_no_one_else(shared: EngineDriver) -> None:
    clear_gradients(shared)
    passes = make_passes(16)
    expected = {run: (shared.one(passes[run]), gradients(shared, run)) for run in "bcd"}
    clear_gradients(shared)
    before = weights(shared, "a")
    trainable(shared, "a").adapter.flat.fill_(float("nan"))
    try:
        answers = dict(zip(passes, shared.together(passes.values()), strict=True))
    finally:
        trainable(shared, "a").adapter.flat.copy_(before)
    assert isinstance(answers["a"], BadRequestError)
    assert answers["a"].field == "data[0]"
    for run in "bcd":
        assert_same_pass(answers[run], expected[run][0], BOUND)
        assert_same_gradients(gradients(shared, run), expected[run][1], BOUND)


def test_unloading_a_run_frees_its_memory(driver: EngineDriver) -> None:
    trained_run(driver, "run", shape())
    flat = weakref.ref(trainable(driver, "run").adapter.flat)
    gc.collect()
    gc.disable()
    try:
        driver.one(UnloadRun("run"))
        assert flat() is None
    finally:
        gc.enable()
