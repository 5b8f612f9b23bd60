"""Passes whose datums begin alike, against the same without sharing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.engine import prefixes
from mint.engine.core import Datum, ForwardBackward, Int32Array
from mint.engine.loss_specs import LOSS_SPECS
from mint.models.causal_lm import CausalLM
from tests.engine.conftest import EngineDriver, make_datum, make_driver, shape
from tests.engine.support import assert_same_gradients, assert_same_pass, gradients, trainable, trained_run

BOUND = 1e-5
"""Of log-probabilities, and of gradients relative to the largest."""


@pytest.fixture(scope="module")
def driver_(qwen_dir: Path) -> EngineDriver:
    driver = make_driver(qwen_dir, max_batch_tokens=8192)
    trained_run(driver, "run", shape(8))
    trained_run(driver, "other", shape(4), seed=1)
    return driver


def with_prefix(datum: Datum, prompt: Int32Array) -> Datum:
    """The datum with its first tokens replaced; its targets inside follow the prompt, as in real data."""
    tokens = datum.tokens.copy()
    tokens[: len(prompt)] = prompt[: len(tokens)]
    return replace(datum, tokens=tokens)


def group(rng: np.random.Generator, lengths: list[int], prompt: int, targets: int = 1) -> tuple[Datum, ...]:
    """Datums of these lengths whose first `prompt` tokens are equal, with different targets at the border."""
    beginning = rng.integers(0, 2048, prompt).astype(np.int32)
    data = [with_prefix(make_datum(rng, length, policy=True), beginning) for length in lengths]
    if targets > 1:
        data = [replace(d, loss_inputs=soft(rng, len(d.tokens), targets)) for d in data]
    return tuple(data)


def soft(rng: np.random.Generator, length: int, targets: int) -> dict[str, np.ndarray]:
    return {
        "target_tokens": rng.integers(0, 2048, (length, targets)),
        "weights": rng.normal(size=(length, targets)).astype(np.float32),
    }


def run_passes(driver: EngineDriver, passes: list[ForwardBackward]) -> tuple[list[object], dict[str, object]]:
    for run in ("run", "other"):
        trainable(driver, run).gradients.zero_()
    answers = driver.together(passes)
    return answers, {run: gradients(driver, run) for run in {command.run_id for command in passes}}


def assert_sharing_changes_nothing(driver: EngineDriver, passes: list[ForwardBackward]) -> None:
    answers, grads = run_passes(driver, passes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prefixes, "MIN_SHARED", 1 << 30)
        expected, expected_grads = run_passes(driver, passes)
    for ours, theirs in zip(answers, expected, strict=True):
        assert_same_pass(ours, theirs, BOUND)
    for run, grad in expected_grads.items():
        assert_same_gradients(grads[run], grad, BOUND)


@pytest.mark.parametrize("loss_fn", sorted(LOSS_SPECS.keys() - {"custom"}))
def test_a_group_shares_its_prompt_under_every_loss(driver_: EngineDriver, loss_fn: str) -> None:
    data = group(np.random.default_rng(0), [60, 60, 48, 41, 40, 60], prompt=40)
    command = ForwardBackward("run", data, loss_fn, dict(LOSS_SPECS[loss_fn].config))
    assert_sharing_changes_nothing(driver_, [command])


def test_soft_targets_share_too(driver_: EngineDriver) -> None:
    data = group(np.random.default_rng(1), [30, 45, 45], prompt=25, targets=3)
    assert_sharing_changes_nothing(driver_, [ForwardBackward("run", data, "cross_entropy")])


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "gspo"])
@pytest.mark.parametrize("reply", [0, 4], ids=["growing", "turning aside"])
def test_a_long_conversation_shares_its_history(driver_: EngineDriver, loss_fn: str, reply: int) -> None:
    """Of every turn there is a datum: the history up to it, and a reply that the next one has not."""
    rng = np.random.default_rng(4)
    history = rng.integers(0, 2048, 12 * 18).astype(np.int32)
    lengths = [18 * turn + reply for turn in range(1, 13)]
    data = [with_prefix(make_datum(rng, n, policy=True), history[: n - reply]) for n in lengths]
    rng.shuffle(data)
    command = ForwardBackward("run", tuple(data), loss_fn, dict(LOSS_SPECS[loss_fn].config))
    assert_sharing_changes_nothing(driver_, [command])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    groups=st.lists(
        st.tuples(st.integers(1, 50), st.lists(st.integers(1, 70), min_size=1, max_size=5)), min_size=1, max_size=3
    ),
    max_batch_tokens=st.sampled_from([20, 90, 8192]),
)
def test_groups_of_several_runs_in_batches_of_any_size(
    driver_: EngineDriver, seed: int, groups: list[tuple[int, list[int]]], max_batch_tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    passes = [
        ForwardBackward(run, group(rng, lengths, prompt), "importance_sampling")
        for run, (prompt, lengths) in zip(["run", "other", "run"], groups, strict=False)
    ]
    driver_.engine._trainer._max_batch_tokens = max_batch_tokens
    try:
        assert_sharing_changes_nothing(driver_, passes)
    finally:
        driver_.engine._trainer._max_batch_tokens = 8192


def test_a_shared_prompt_is_computed_once(driver_: EngineDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    forward = CausalLM._forward

    def watch(self: CausalLM, tokens: object, *arguments: object) -> object:
        computed.append(len(tokens))
        return forward(self, tokens, *arguments)

    monkeypatch.setattr(CausalLM, "_forward", watch)
    data = group(np.random.default_rng(2), [60] * 8, prompt=50)
    driver_.one(ForwardBackward("run", data, "importance_sampling"))
    assert computed == [50 + 8 * 10]


def test_passes_of_different_requests_share_nothing(driver_: EngineDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal prompts of different tenants go through different weights."""
    data = group(np.random.default_rng(3), [60, 60], prompt=50)
    passes = [ForwardBackward(run, data[:1], "cross_entropy") for run in ("run", "other")]
    alone = [driver_.one(command) for command in passes]
    together, _ = run_passes(driver_, passes)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same_pass(ours, theirs, BOUND)
