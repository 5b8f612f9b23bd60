"""Sequences that begin alike: the forest, and passes through it against passes without sharing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.engine import prefixes
from mint.engine.core import Datum, ForwardBackward, Int32Array
from mint.engine.loss_specs import LOSS_SPECS
from mint.engine.prefixes import MAX_DEPTH, MIN_SHARED, Node, forest
from mint.models.causal_lm import CausalLM
from tests.engine.conftest import EngineDriver, make_datum, make_driver, shape
from tests.engine.support import assert_same_gradients, assert_same_pass, gradients, trainable, trained_run

BOUND = 1e-5
"""Of log-probabilities, and of gradients relative to the largest."""


def nodes(roots: list[Node]) -> Iterator[Node]:
    for node in roots:
        yield node
        yield from nodes(node.children)


def sequences_of(
    roots: list[Node], given_: list[Int32Array], above: tuple[int, ...] = ()
) -> dict[int, tuple[int, ...]]:
    """Each sequence, read along its path."""
    found: dict[int, tuple[int, ...]] = {}
    for node in roots:
        path = (*above, *given_[node.source][node.start : node.stop].tolist())
        found |= dict.fromkeys(node.members, path)
        found |= sequences_of(node.children, given_, path)
    return found


def arrays(sequences: list[list[int]]) -> list[Int32Array]:
    return [np.array(sequence, np.int32) for sequence in sequences]


PIECES = [[7] * MIN_SHARED, [8] * MIN_SHARED, [9] * (MIN_SHARED + 3), [7, 8], [1]]
"""Sequences made of these share a lot, at many depths."""


@settings(max_examples=60, deadline=None, derandomize=True)
@given(made_of=st.lists(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=6), min_size=1, max_size=12))
def test_every_sequence_is_a_path_of_the_forest(made_of: list[list[int]]) -> None:
    sequences = arrays([[token for piece in pieces for token in PIECES[piece]] for pieces in made_of])
    roots = forest(sequences)
    assert sequences_of(roots, sequences) == {i: tuple(s.tolist()) for i, s in enumerate(sequences)}
    for node in nodes(roots):
        assert node.num_tokens > 0
        if node.children:
            assert node.num_tokens >= MIN_SHARED
            assert all(child.start == node.stop for child in node.children)
    assert sum(node.num_tokens for node in nodes(roots)) <= sum(map(len, sequences))


def test_a_group_is_a_prompt_and_its_completions() -> None:
    prompt = list(range(100, 140))
    roots = forest(arrays([[*prompt, completion, 5, 6] for completion in range(4)]))
    assert [(root.num_tokens, [child.num_tokens for child in root.children]) for root in roots] == [(40, [3, 3, 3, 3])]


def test_a_conversation_is_a_chain() -> None:
    turns = [list(range(length)) for length in (20, 50, 90)]
    (root,) = forest(arrays(turns))
    chain = [root, root.children[0], root.children[0].children[0]]
    assert [(node.num_tokens, node.members) for node in chain] == [(20, [0]), (30, [1]), (40, [2])]


def test_too_little_is_not_shared() -> None:
    short = [1] * (MIN_SHARED - 1)
    assert len(forest(arrays([[*short, 2], [*short, 3]]))) == 2


def test_equal_sequences_are_computed_once() -> None:
    (root,) = forest(arrays([[3] * 30] * 5))
    assert (root.num_tokens, root.members, root.children) == (30, [0, 1, 2, 3, 4], [])


def test_a_chain_deeper_than_the_limit_is_cut_and_complete() -> None:
    turns = arrays([[1] * (MIN_SHARED * (1 + turn)) for turn in range(3 * MAX_DEPTH)])
    roots = forest(turns)
    depth, level = 0, roots
    while level:
        depth, level = depth + 1, [child for node in level for child in node.children]
    assert depth <= MAX_DEPTH + 1
    assert sequences_of(roots, turns) == {i: tuple(s.tolist()) for i, s in enumerate(turns)}


# --- passes -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("loss_fn", LOSS_SPECS.keys() - {"custom"})
def test_a_group_shares_its_prompt_under_every_loss(driver_: EngineDriver, loss_fn: str) -> None:
    data = group(np.random.default_rng(0), [60, 60, 48, 41, 40, 60], prompt=40)
    command = ForwardBackward("run", data, loss_fn, dict(LOSS_SPECS[loss_fn].config))
    assert_sharing_changes_nothing(driver_, [command])


def test_soft_targets_share_too(driver_: EngineDriver) -> None:
    data = group(np.random.default_rng(1), [30, 45, 45], prompt=25, targets=3)
    assert_sharing_changes_nothing(driver_, [ForwardBackward("run", data, "cross_entropy")])


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
