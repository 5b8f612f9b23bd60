"""The loss head's hand-written backward and its chunks against autograd on the whole matrix of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mint.models import logprobs
from mint.models.logprobs import Pairs, Rows, UnembeddingHead
from mint.models.segments import ActiveSegments, GroupWeights, Segment

TOKENS, HIDDEN, VOCAB, GROUP = 23, 12, 37, 5
BOUND = 2e-6
"""Relative to the largest entry."""


@dataclass
class Slot:
    """An adapter with factors in one group."""

    weights: GroupWeights | None
    scale: float
    shape: object = None
    num_bytes: int = 4

    def group(self, index: int) -> GroupWeights | None:
        assert index == GROUP
        return self.weights

    def stack(self, others: Sequence[Slot]) -> Stack:
        return Stack([self, *others])


@dataclass
class Stack:
    """Copies, without gradients of their own."""

    adapters: Sequence[Slot]

    def group(self, index: int) -> GroupWeights | None:
        weights = [slot.group(index) for slot in self.adapters]
        return GroupWeights(torch.stack([w.a for w in weights]), (torch.stack([w.b[0] for w in weights]),), None, None)


def make_slot(rank: int, scale: float, *, trainable: bool = True) -> Slot:
    a, b = torch.randn(rank, HIDDEN), torch.randn(VOCAB, rank)
    grads = (torch.zeros_like(a), (torch.zeros_like(b),)) if trainable else (None, None)
    return Slot(GroupWeights(a, (b,), *grads), scale, shape=(rank, trainable))


@dataclass
class Linear:
    """A loss Σ upstream · logprob, whose gradient a head may ask for chunk by chunk, or for all pairs at once."""

    upstream: Tensor
    per_token: bool

    def gradient(self, logprobs: Tensor, pairs: slice) -> Tensor:
        assert self.per_token or len(logprobs) == len(self.upstream)
        assert logprobs.shape == self.upstream[pairs].shape
        return self.upstream[pairs]


def one_target_each() -> Pairs:
    return Pairs(torch.arange(TOKENS), torch.randint(0, VOCAB, (TOKENS,)), one_each=True)


@dataclass
class Case:
    """Tokens 0–6 by one adapter, 7–9 by none, 10–19 by another, 20–22 by one that leaves this group alone."""

    linear: nn.Linear = field(default_factory=lambda: nn.Linear(HIDDEN, VOCAB).requires_grad_(False))
    hidden: Tensor = field(default_factory=lambda: torch.randn(TOKENS, HIDDEN))
    pairs: Pairs = field(default_factory=one_target_each)
    upstream: Tensor = field(default_factory=lambda: torch.randn(TOKENS))
    slots: tuple[Slot, ...] = field(default_factory=lambda: (make_slot(3, 0.5), make_slot(1, 2.0), Slot(None, 1.0)))
    borders: tuple[int, ...] = (7, 10, 20)
    packed: bool = False

    @property
    def segments(self) -> list[Segment]:
        adapters = (self.slots[0], None, self.slots[1], self.slots[2])
        starts, stops = (0, *self.borders), (*self.borders, TOKENS)
        return [Segment(*segment) for segment in zip(starts, stops, adapters, strict=True)]

    @property
    def trained(self) -> list[tuple[Segment, GroupWeights, float]]:
        """The segments that change the logits."""
        return [(s, s.adapter.weights, s.adapter.scale) for s in self.segments if s.adapter and s.adapter.weights]

    @property
    def head(self) -> UnembeddingHead:
        return UnembeddingHead(self.linear, GROUP, ActiveSegments(), packed=self.packed)

    def ours(self, *, per_token: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities, and the gradients of hidden states and factors."""
        objective = Linear(self.upstream, per_token)
        result, grad = self.head.minimise(self.hidden, self.pairs, self.segments, objective)
        return result, [grad, *(g.clone() for _, w, _ in self.trained if w.grad_b for g in (w.grad_a, *w.grad_b))]

    def logits(self, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        """In float64, and the factors that they depend on."""
        logits = hidden @ self.linear.weight.double().T + self.linear.bias.double()
        factors = []
        for segment, weights, scale in self.trained:
            a, b = weights.a.double().requires_grad_(), weights.b[0].double().requires_grad_()
            rows = torch.zeros(TOKENS, 1, dtype=torch.float64)
            rows[segment.start : segment.stop] = 1
            logits = logits + rows * scale * (hidden @ a.T @ b.T)
            factors += [a, b] if weights.grad_b else []
        return logits, factors

    def reference(self) -> tuple[Tensor, list[Tensor]]:
        """The same by autograd in float64."""
        hidden = self.hidden.double().requires_grad_()
        logits, factors = self.logits(hidden)
        result = logits.log_softmax(dim=1)[self.pairs.rows, self.pairs.targets]
        result.backward(self.upstream.double())
        return result.detach(), [hidden.grad, *(factor.grad for factor in factors)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(ours: Tensor, expected: Tensor, bound: float = BOUND) -> None:
    assert ours.dtype == torch.float32
    assert float((ours - expected).abs().max()) <= bound * max(1.0, float(expected.abs().max()))


def assert_equals_reference(case: Case, *, per_token: bool = True) -> None:
    (ours, our_grads), (expected, expected_grads) = case.ours(per_token=per_token), case.reference()
    assert_close(ours, expected)
    for a, b in zip(our_grads, expected_grads, strict=True):
        assert_close(a, b)


def set_rows_of_a_chunk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", rows * VOCAB)


@pytest.mark.parametrize("rows", [1, 4, 5, 22, 23, 1000])
@pytest.mark.parametrize("per_token", [True, False])
def test_values_and_gradients_equal_autograd_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, rows: int, per_token: bool
) -> None:
    """Chunks of 4 cut segments in the middle; of 5, at the second segment's end."""
    set_rows_of_a_chunk(monkeypatch, rows)
    assert_equals_reference(Case(), per_token=per_token)


def test_chunks_smaller_than_a_row_still_hold_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)
    assert_equals_reference(Case())


@pytest.mark.parametrize("zeros", [0.3, 0.9, 1.0])
def test_rows_without_gradient_are_left_out(monkeypatch: pytest.MonkeyPatch, zeros: float) -> None:
    set_rows_of_a_chunk(monkeypatch, 6)
    case = Case()
    case.upstream[torch.rand(TOKENS) < zeros] = 0
    assert_equals_reference(case)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=60).map(sorted),
    chunk=st.integers(1, TOKENS),
    per_token=st.booleans(),
    data=st.data(),
)
def test_any_number_of_targets_for_a_token(rows: list[int], chunk: int, per_token: bool, data: st.DataObject) -> None:
    """None, several, the same one twice; gradients may cancel."""
    targets = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=len(rows), max_size=len(rows)))
    upstream = data.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.7]), min_size=len(rows), max_size=len(rows)))
    pairs = Pairs(torch.tensor(rows), torch.tensor(targets), one_each=False)
    with pytest.MonkeyPatch.context() as patched:
        set_rows_of_a_chunk(patched, chunk)
        assert_equals_reference(Case(pairs=pairs, upstream=torch.tensor(upstream)), per_token=per_token)


def test_weights_in_a_layout_of_their_own_compute_the_same() -> None:
    assert_equals_reference(Case(packed=True))


def test_short_segments_of_one_shape_run_stacked_and_equal_autograd() -> None:
    case = Case(slots=(make_slot(2, 0.5), make_slot(2, 0.5), Slot(None, 1.0)), borders=(7, 7, 14))
    assert_equals_reference(case)


def test_gradients_of_factors_accumulate() -> None:
    case = Case()
    once = case.ours()[1]
    twice = case.ours()[1]
    torch.testing.assert_close(twice[0], once[0])
    for a, b in zip(twice[1:], once[1:], strict=True):
        torch.testing.assert_close(a, 2 * b)


def test_logits_and_logprobs_are_those_of_minimise() -> None:
    case = Case()
    expected = case.ours()[0]
    logits = case.head.logits(case.hidden, case.segments)
    assert_close(logits.log_softmax(dim=1).gather(1, case.pairs.targets[:, None])[:, 0], expected)
    assert torch.equal(case.head.logprobs(case.hidden, case.pairs, case.segments), expected)


def test_a_revision_has_no_gradients_and_passes_them_through() -> None:
    frozen = (make_slot(3, 0.5, trainable=False), make_slot(1, 2.0, trainable=False), Slot(None, 1.0))
    assert_equals_reference(Case(slots=frozen))


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    case = Case()
    case.hidden *= size
    (ours, our_grads), (expected, expected_grads) = case.ours(), case.reference()
    assert torch.isfinite(ours).all()
    assert_close(ours, expected)
    for a, b in zip(our_grads, expected_grads, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("rows", [3, 8, 1000])
def test_reverse_kl_equals_autograd(monkeypatch: pytest.MonkeyPatch, rows: int, temperature: float) -> None:
    set_rows_of_a_chunk(monkeypatch, rows)
    case, other = Case(), Case()
    other.linear = case.linear
    student, reference = Rows(case.hidden, case.segments), Rows(other.hidden, other.segments)

    divergence, grad = case.head.reverse_kl(student, reference, case.upstream, temperature)

    hidden = case.hidden.double().requires_grad_()
    logits, factors = case.logits(hidden)
    ours = (logits / temperature).log_softmax(dim=1)
    theirs = (other.logits(other.hidden.double())[0] / temperature).log_softmax(dim=1).detach()
    expected = (ours.exp() * (ours - theirs)).sum(dim=1)
    (expected * case.upstream).sum().backward()
    # log-probabilities of some tens, whose difference is taken
    assert_close(divergence, expected.detach(), 1e-5)
    assert_close(grad, hidden.grad, 1e-5)
    grads = [g for _, w, _ in case.trained for g in (w.grad_a, *w.grad_b)]
    for a, factor in zip(grads, factors, strict=True):
        assert_close(a, factor.grad, 1e-5)
    assert not any(g.any() for _, w, _ in other.trained for g in (w.grad_a, *w.grad_b))


def largest_tensor(run: Callable[[], object]) -> int:
    """Elements of the largest tensor that an operation makes."""
    with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
        run()
    return max(event.self_cpu_memory_usage for event in profile.events()) // 4


def test_nothing_of_vocabulary_size_outlives_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a pass must not grow with tokens × vocabulary."""
    set_rows_of_a_chunk(monkeypatch, 2)
    case = Case()
    assert largest_tensor(case.ours) < TOKENS * VOCAB
    assert largest_tensor(lambda: case.head.logprobs(case.hidden, case.pairs, case.segments)) < TOKENS * VOCAB
