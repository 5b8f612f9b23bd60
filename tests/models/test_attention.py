"""Packed attention against every sequence by itself, written out as a softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint.models.attention import PackedCausal

HEAD_SIZE, SCALE = 8, 0.3
BOUND = 2e-6


def reference(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """(1, H, T, D): one sequence and one head after another, in float64."""
    heads_per_group = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        group, start, outputs = head // heads_per_group, 0, []
        for length in lengths:
            q, k, v = (
                t[0, index, start : start + length].double()
                for t, index in ((query, head), (key, group), (value, group))
            )
            scores = (q @ k.T * SCALE).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            outputs.append(scores.softmax(dim=1) @ v)
            start += length
        rows.append(torch.cat(outputs))
    return torch.stack(rows)[None]


def make_inputs(lengths: list[int], heads: int, kv_heads: int) -> list[Tensor]:
    """Laid out as transformers' modules pass them: (1, T, heads, D), transposed."""
    torch.manual_seed(0)
    return [
        torch.randn(1, sum(lengths), h, HEAD_SIZE).transpose(1, 2).requires_grad_() for h in (heads, kv_heads, kv_heads)
    ]


def check(lengths: list[int], heads: int, kv_heads: int) -> None:
    ours, theirs = make_inputs(lengths, heads, kv_heads), make_inputs(lengths, heads, kv_heads)
    output = PackedCausal(lengths).attend(0, *ours, SCALE)
    expected = reference(*theirs, lengths)
    assert output.shape == expected.shape
    assert float((output - expected).detach().abs().max()) <= BOUND
    upstream = torch.randn(output.shape)
    grads = torch.autograd.grad(output, ours, upstream)
    expected_grads = torch.autograd.grad(expected, theirs, upstream.double())
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert float((grad - expected_grad).abs().max()) <= 10 * BOUND


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(
    "lengths",
    [[1], [7], [5, 5, 5], [3, 8], [1, 1, 9, 4, 4, 1], [4, 6, 4]],
    ids=lambda lengths: "+".join(map(str, lengths)),
)
def test_equals_each_sequence_by_itself(lengths: list[int], heads: int, kv_heads: int) -> None:
    check(lengths, heads, kv_heads)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_lengths(lengths: list[int]) -> None:
    check(lengths, 4, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sequence_of_bad_numbers_spoils_no_other(bad: float) -> None:
    lengths = [4, 4, 3, 4]
    inputs = [t.detach() for t in make_inputs(lengths, 4, 2)]
    expected = PackedCausal(lengths).attend(0, *inputs, SCALE)
    for tensor in inputs:
        tensor[:, :, 4:8] = bad
    output = PackedCausal(lengths).attend(0, *inputs, SCALE)
    assert torch.equal(output[:, :, :4], expected[:, :, :4])
    assert torch.equal(output[:, :, 8:], expected[:, :, 8:])
