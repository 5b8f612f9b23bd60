"""The loss head's hand-written backward and its chunks against autograd on the whole matrix of logits."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from mint.models import logprobs
from mint.models.logprobs import UnembeddingHead
from mint.models.lora import Segment, SiteWeights

TOKENS, HIDDEN, VOCAB, SITE = 23, 12, 37, 5
BOUND = 2e-6
"""Relative to the largest entry."""


@dataclass
class Slot:
    """An adapter with factors at one site."""

    weights: SiteWeights | None
    scale: float

    def site(self, index: int) -> SiteWeights | None:
        assert index == SITE
        return self.weights


def make_slot(rank: int, scale: float, *, trainable: bool = True) -> Slot:
    a, b = torch.randn(rank, HIDDEN), torch.randn(VOCAB, rank)
    grads = (torch.zeros_like(a), torch.zeros_like(b)) if trainable else (None, None)
    return Slot(SiteWeights(a, b, *grads), scale)


@dataclass
class Case:
    """Tokens 0–6 by one adapter, 7–9 by none, 10–19 by another, 20–22 by one that leaves this site alone."""

    linear: nn.Linear = field(default_factory=lambda: nn.Linear(HIDDEN, VOCAB).requires_grad_(False))
    hidden: Tensor = field(default_factory=lambda: torch.randn(TOKENS, HIDDEN))
    targets: Tensor = field(default_factory=lambda: torch.randint(0, VOCAB, (TOKENS,)))
    upstream: Tensor = field(default_factory=lambda: torch.randn(TOKENS))
    slots: tuple[Slot, ...] = field(default_factory=lambda: (make_slot(3, 0.5), make_slot(1, 2.0), Slot(None, 1.0)))

    @property
    def segments(self) -> list[Segment]:
        first, second, without = self.slots
        return [Segment(0, 7, first), Segment(7, 10, None), Segment(10, 20, second), Segment(20, 23, without)]

    @property
    def trained(self) -> list[tuple[Segment, SiteWeights, float]]:
        """The segments that change the logits."""
        return [
            (segment, slot.weights, slot.scale)
            for segment, slot in zip((self.segments[0], self.segments[2]), self.slots, strict=False)
        ]

    def ours(self) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities, and the gradients of hidden states and factors."""
        hidden = self.hidden.clone().requires_grad_()
        head = UnembeddingHead(self.linear, SITE)
        result = head.target_logprobs(hidden, self.targets, self.segments)
        result.backward(self.upstream)
        return result.detach(), [
            hidden.grad,
            *(g.clone() for _, weights, _ in self.trained for g in (weights.grad_a, weights.grad_b)),
        ]

    def reference(self) -> tuple[Tensor, list[Tensor]]:
        """The same by autograd in float64."""
        hidden = self.hidden.double().requires_grad_()
        logits = hidden @ self.linear.weight.double().T + self.linear.bias.double()
        factors = []
        for segment, weights, scale in self.trained:
            a, b = weights.a.double().requires_grad_(), weights.b.double().requires_grad_()
            rows = torch.zeros(TOKENS, 1, dtype=torch.float64)
            rows[segment.start : segment.stop] = 1
            logits = logits + rows * scale * (hidden @ a.T @ b.T)
            factors += [a, b]
        result = logits.log_softmax(dim=1).gather(1, self.targets[:, None])[:, 0]
        result.backward(self.upstream.double())
        return result.detach(), [hidden.grad, *(factor.grad for factor in factors)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert float((ours - expected).abs().max()) <= BOUND * max(1.0, float(expected.abs().max()))


def set_rows_of_a_chunk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", rows * VOCAB)


@pytest.mark.parametrize("rows", [1, 4, 5, 22, 23, 1000])
def test_values_and_gradients_equal_autograd_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Chunks of 4 cut segments in the middle; of 5, at the second segment's end."""
    set_rows_of_a_chunk(monkeypatch, rows)
    case = Case()
    (ours, our_grads), (expected, expected_grads) = case.ours(), case.reference()
    assert_close(ours, expected)
    for a, b in zip(our_grads, expected_grads, strict=True):
        assert_close(a, b)


def test_chunks_smaller_than_a_row_still_hold_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)
    case = Case()
    assert_close(case.ours()[0], case.reference()[0])


def test_chunks_equal_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    whole, whole_grads = case.ours()
    for slot in case.slots[:2]:
        slot.weights.grad_a.zero_()
        slot.weights.grad_b.zero_()
    set_rows_of_a_chunk(monkeypatch, 3)
    chunked, chunked_grads = case.ours()
    assert_close(chunked, whole)
    for a, b in zip(chunked_grads, whole_grads, strict=True):
        assert_close(a, b)


def test_gradients_of_factors_accumulate() -> None:
    case = Case()
    once = case.ours()[1]
    twice = case.ours()[1]
    torch.testing.assert_close(twice[0], once[0])
    for a, b in zip(twice[1:], once[1:], strict=True):
        torch.testing.assert_close(a, 2 * b)


def test_logits_are_those_the_logprobs_come_from() -> None:
    case = Case()
    logits = UnembeddingHead(case.linear, SITE).logits(case.hidden, case.segments)
    expected = logits.log_softmax(dim=1).gather(1, case.targets[:, None])[:, 0]
    assert_close(case.ours()[0], expected)


def test_a_revision_has_no_gradients_and_passes_them_through() -> None:
    case = Case(slots=(make_slot(3, 0.5, trainable=False), make_slot(1, 2.0, trainable=False), Slot(None, 1.0)))
    hidden = case.hidden.clone().requires_grad_()
    UnembeddingHead(case.linear, SITE).target_logprobs(hidden, case.targets, case.segments).backward(case.upstream)
    assert_close(hidden.grad, case.reference()[1][0])


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    case = Case()
    case.hidden *= size
    (ours, our_grads), (expected, expected_grads) = case.ours(), case.reference()
    assert torch.isfinite(ours).all()
    assert_close(ours, expected)
    for a, b in zip(our_grads, expected_grads, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


def test_nothing_of_vocabulary_size_is_kept_for_the_backward() -> None:
    """The memory of a pass must not grow with tokens × vocabulary."""
    case = Case()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        UnembeddingHead(case.linear, SITE).target_logprobs(
            case.hidden.clone().requires_grad_(), case.targets, case.segments
        )
    assert saved
    assert max(saved) <= TOKENS * HIDDEN
