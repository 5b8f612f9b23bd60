"""Packed attention against every sequence by itself, written out as a softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint.models import flash
from mint.models.attention import PackedCausal, Prefix
from mint.models.flash import Answer, Attend, Block

HEAD_SIZE, SCALE = 8, 0.3
BOUND = 2e-6


def reference(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """(T, H, D) in float64; `seen` (T, T) says which token sees which."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
    scores = torch.einsum("thd,shd->hts", query.double(), key) * SCALE
    return torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), value)


def paths_seen(paths: list[list[slice]], window: int | None, total: int) -> Tensor:
    """Which token sees which, where each sequence is the stretches of a path, one after the other."""
    seen = torch.zeros(total, total, dtype=torch.bool)
    for path in paths:
        rows = torch.cat([torch.arange(s.start, s.stop) for s in path])
        behind = torch.arange(len(rows))[:, None] - torch.arange(len(rows))
        seen[rows[:, None], rows] |= (behind >= 0) & (behind < (window or len(rows)))
    return seen


def stretches(lengths: list[int]) -> list[slice]:
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def make_inputs(total: int, heads: int, kv_heads: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(total, h, HEAD_SIZE).requires_grad_() for h in (heads, kv_heads, kv_heads)]


def check(plan: PackedCausal, seen: Tensor, heads: int = 4, kv_heads: int = 2, window: int | None = None) -> None:
    ours, theirs = make_inputs(len(seen), heads, kv_heads), make_inputs(len(seen), heads, kv_heads)
    output = plan.attend(0, *ours, Attend(SCALE, window=window))
    expected = reference(*theirs, seen)
    assert output.shape == expected.shape
    assert float((output - expected).detach().abs().max()) <= BOUND
    upstream = torch.randn(output.shape)
    grads = torch.autograd.grad(output, ours, upstream)
    expected_grads = torch.autograd.grad(expected, theirs, upstream.double())
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert float((grad - expected_grad).abs().max()) <= 10 * BOUND


def check_lengths(lengths: list[int], heads: int = 4, kv_heads: int = 2, window: int | None = None) -> None:
    seen = paths_seen([[s] for s in stretches(lengths)], window, sum(lengths))
    check(PackedCausal(lengths), seen, heads, kv_heads, window)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    "lengths",
    [[1], [7], [5, 5, 5], [3, 8], [1, 1, 9, 4, 4, 1], [4, 6, 4]],
    ids=lambda lengths: "+".join(map(str, lengths)),
)
def test_equals_each_sequence_by_itself(lengths: list[int], heads: int, kv_heads: int, window: int | None) -> None:
    check_lengths(lengths, heads, kv_heads, window)


@pytest.mark.parametrize("lengths", [[23], [9, 9], [4, 13, 2]], ids=str)
@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_window_narrower_than_what_is_computed_at_a_time(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], window: int
) -> None:
    monkeypatch.setattr(flash, "WINDOW_QUERIES", 4)
    check_lengths(lengths, window=window)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_lengths(lengths: list[int]) -> None:
    check_lengths(lengths)


@dataclass
class Tree:
    """Stretches depth first, as a packer lays them out."""

    lengths: list[int]
    prefixes: list[Prefix]
    paths: list[list[slice]]

    def grow(self, shape: object, above: list[slice]) -> None:
        """`shape` is a length, or a length and what follows it."""
        length, below = shape if isinstance(shape, tuple) else (shape, [])
        start = sum(self.lengths)
        self.lengths.append(length)
        path = [*above, slice(start, start + length)]
        self.paths.append(path)
        for child in below:
            self.grow(child, path)
        if below:
            self.prefixes.append(Prefix(start, start + length, start + length, sum(self.lengths)))


trees = st.recursive(
    st.integers(1, 6), lambda below: st.tuples(st.integers(1, 6), st.lists(below, min_size=1, max_size=3))
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes=st.lists(trees, min_size=1, max_size=3))
def test_shared_prefixes_equal_each_sequence_by_itself(shapes: list[object]) -> None:
    tree = Tree([], [], [])
    for shape in shapes:
        tree.grow(shape, [])
    check(PackedCausal(tree.lengths, tree.prefixes), paths_seen(tree.paths, None, sum(tree.lengths)))


def test_a_prefix_may_be_a_part_of_a_stretch_and_lie_anywhere_in_front() -> None:
    """Twigs of one branch of 9 tokens: two leave it after 6, of which the second has a twig of its own, one after 2."""
    branch, first, second, twig, last = stretches(lengths := [9, 3, 5, 2, 4])
    prefixes = [Prefix(0, 6, 9, 19), Prefix(12, 14, 17, 19), Prefix(0, 2, 19, 23)]
    six, two = slice(0, 6), slice(0, 2)
    paths = [[branch], [six, first], [six, second], [six, slice(12, 14), twig], [two, last]]
    check(PackedCausal(lengths, prefixes), paths_seen(paths, None, sum(lengths)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sequence_of_bad_numbers_spoils_no_other(bad: float) -> None:
    lengths = [4, 4, 3, 4]
    inputs = [t.detach() for t in make_inputs(sum(lengths), 4, 2)]
    expected = PackedCausal(lengths).attend(0, *inputs, Attend(SCALE))
    for tensor in inputs:
        tensor[4:8] = bad
    output = PackedCausal(lengths).attend(0, *inputs, Attend(SCALE))
    assert torch.equal(output[:4], expected[:4])
    assert torch.equal(output[8:], expected[8:])


@pytest.mark.parametrize(("queries", "keys", "how"), [
    (7, 7, Attend(SCALE)), (7, 7, Attend(SCALE, window=3)), (5, 9, Attend(SCALE, causal=False)),
])  # fmt: skip
def test_the_fused_operators_are_still_what_they_were(queries: int, keys: int, how: Attend) -> None:
    """torch has no public function that returns the log-sum-exp; ours without one is the reference."""
    torch.manual_seed(0)
    block = Block(torch.randn(2, queries, 4, 8), torch.randn(2, keys, 2, 8), torch.randn(2, keys, 2, 8))
    grad = torch.randn(2, queries, 4, 8)
    mask = flash._band((queries, keys), how.window, torch.float32, grad.device)[None] if how.window else None
    fused, plain = flash.forward(block, how), flash._plain_forward(block, how, mask)
    ours = [*fused, *flash.backward(grad, block, fused, how)]
    theirs = [*plain, *flash._plain_backward(grad, block, Answer(*plain), how, mask)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=5),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_blocks_by_their_running_sum(masks: list[list[bool]], below: int, twice: bool) -> None:
    """Token i sees token j iff cumsum[j] ≤ cumsum[i]; causal stretches between them, and some below the first."""
    masks = masks * 2 if twice else masks
    lengths = [len(mask) for mask in masks] + [below] * (below > 0)
    blocks = [np.cumsum(mask).astype(np.int32) if place % 2 == 0 else None for place, mask in enumerate(masks)]
    rows = stretches(lengths)
    seen = paths_seen([[s] for s in rows], None, sum(lengths))
    for own, c in zip(rows, blocks, strict=False):
        if c is not None:
            running = torch.from_numpy(c)
            seen[own, own] = running[None, :] <= running[:, None]
    prefixes = [Prefix(rows[0].start, rows[0].stop, rows[-1].start, rows[-1].stop)] if below else []
    if below:
        seen[rows[-1], rows[0]] = True
        blocks.append(None)
    check(PackedCausal(lengths, prefixes, blocks), seen)
