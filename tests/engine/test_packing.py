"""Sequences that begin alike, laid out: what is computed, what sees what, and where a request is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, chain
from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.engine.core import Int32Array
from mint.engine.packing import PackedBatch, in_sharing_order, micro_batches, pack_shared
from mint.engine.prefixes import MIN_SHARED
from mint.models.attention import PackedCausal

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sequence:
    """Of the base model; `load` for the cut."""

    tokens: Int32Array
    family: int = 0
    load: float = 0.0
    adapter: None = None


def sequences(lists: list[list[int]], **others: float) -> list[Sequence]:
    return [Sequence(np.array(tokens, np.int32), **others) for tokens in lists]


def packed(items: list[Sequence]) -> tuple[list[Sequence], PackedBatch]:
    ordered = list(in_sharing_order(items))
    return ordered, pack_shared(ordered, CPU)


def cut(items: list[Sequence], max_tokens: int) -> list[list[Sequence]]:
    return list(micro_batches(items, max_tokens, lambda item: item.load))


def computed(items: list[Sequence]) -> int:
    return len(pack_shared(items, CPU).tokens)


def plan_of(batch: PackedBatch) -> PackedCausal:
    assert isinstance(batch.plan, PackedCausal)
    return batch.plan


def seen(batch: PackedBatch) -> torch.Tensor:
    """(T, T): which token sees which; no pair is counted twice."""
    plan, total = plan_of(batch), len(batch.tokens)
    count = torch.zeros(total, total, dtype=torch.int64)
    for stop, length in zip(accumulate(plan._lengths), plan._lengths, strict=True):
        count[stop - length : stop, stop - length : stop] += torch.ones(length, length, dtype=torch.int64).tril()
    for prefix in plan.prefixes:
        count[prefix.below, prefix.own] += 1
    assert int(count.max()) == 1
    return count.bool()


def assert_complete(ordered: list[Sequence], batch: PackedBatch) -> None:
    """Every token sees the tokens in front of it in its sequence, and nothing else."""
    expected = torch.zeros(len(batch.tokens), len(batch.tokens), dtype=torch.bool)
    for item, rows in zip(ordered, batch.rows, strict=True):
        assert batch.tokens[rows].tolist() == item.tokens.tolist()
        assert batch.positions[rows].tolist() == list(range(len(rows)))
        expected[rows[:, None], rows] |= torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    assert torch.equal(seen(batch), expected)
    assert [(segment.start, segment.stop) for segment in batch.segments] == [(0, len(batch.tokens))]


def branches_above(batch: PackedBatch) -> int:
    """The most blocks of attention that a token has beside its own."""
    above = torch.zeros(len(batch.tokens), dtype=torch.int64)
    for prefix in plan_of(batch).prefixes:
        above[prefix.below] += 1
    return int(above.max())


PIECES = [[7] * MIN_SHARED, [8] * MIN_SHARED, [9] * (MIN_SHARED + 3), [7, 8], [1], [7] * (MIN_SHARED - 1)]
"""Sequences made of these share a lot, at many depths."""

made_of_pieces = st.lists(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map(lambda pieces: [*chain.from_iterable(pieces)]),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lists=made_of_pieces, families=st.integers(1, 3))
def test_every_token_sees_its_sequence(lists: list[list[int]], families: int) -> None:
    items = [Sequence(np.array(tokens, np.int32), i * families // len(lists)) for i, tokens in enumerate(lists)]
    ordered, batch = packed(items)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    assert_complete(ordered, batch)
    assert branches_above(batch) <= log2(sum(map(len, lists)))
    assert all(prefix.stop - prefix.start >= MIN_SHARED for prefix in plan_of(batch).prefixes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists=made_of_pieces)
def test_any_order_is_complete(lists: list[list[int]]) -> None:
    items = sequences(lists)
    assert_complete(items, pack_shared(items, CPU))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lists=made_of_pieces, max_tokens=st.sampled_from([1, 17, 40, 64, 150]))
def test_no_batch_computes_more_than_its_budget(lists: list[list[int]], max_tokens: int) -> None:
    items = sequences(lists)
    batches = cut(items, max_tokens)
    assert sorted(id(item) for batch in batches for item in batch) == sorted(map(id, items))
    for batch in batches:
        assert computed(batch) <= max(max_tokens, *(len(item.tokens) for item in batch), 0)
        assert_complete(batch, pack_shared(batch, CPU))


def test_a_group_is_a_prompt_and_its_completions() -> None:
    prompt = list(range(100, 140))
    _, batch = packed(sequences([[*prompt, completion, 5, 6] for completion in range(4)]))
    assert plan_of(batch)._lengths == [43, 3, 3, 3]
    assert [(p.own, p.below) for p in plan_of(batch).prefixes] == [(slice(0, 40), slice(43, 52))]


def test_equal_sequences_are_computed_once() -> None:
    ordered, batch = packed(sequences([[3] * 30] * 5))
    assert (len(batch.tokens), plan_of(batch).prefixes) == (30, [])
    assert_complete(ordered, batch)


def test_too_little_is_not_shared() -> None:
    short = [1] * (MIN_SHARED - 1)
    assert computed(sequences([[*short, 2], [*short, 3]])) == 2 * MIN_SHARED


def test_unrelated_sequences_of_equal_lengths_stand_side_by_side() -> None:
    _, batch = packed(sequences([[i] * length for i, length in enumerate([5, 9, 5, 7, 9, 5])]))
    assert plan_of(batch)._lengths == [5, 5, 5, 7, 9, 9]


# --- conversations ------------------------------------------------------------------------------------------


def growing(turns: int, length: int) -> list[list[int]]:
    """Each history is one turn longer than that before it."""
    tokens = np.random.default_rng(0).integers(0, 2048, turns * length).tolist()
    return [tokens[: length * (turn + 1)] for turn in range(turns)]


def turning_aside(turns: int, length: int) -> list[list[int]]:
    """Each history is followed by a reply that the next history does not have."""
    return [[*history, *([3000 + turn] * 5)] for turn, history in enumerate(growing(turns, length))]


def test_a_conversation_is_computed_once() -> None:
    ordered, batch = packed(sequences(growing(100, 16)))
    assert (len(batch.tokens), plan_of(batch).prefixes) == (1600, [])
    assert_complete(ordered, batch)


def test_a_conversation_with_replies_of_its_own_has_twigs_and_no_depth() -> None:
    ordered, batch = packed(sequences(turning_aside(100, 20)))
    assert len(batch.tokens) == 2000 + 5 * 100
    assert branches_above(batch) == 1
    assert_complete(ordered, batch)


@pytest.mark.parametrize(
    ("history", "max_tokens", "tokens"),
    [
        (growing(150, 16), 4096, [2400]),
        # longer than the budget, and all others begin it
        (growing(150, 16), 1024, [2400]),
        (growing(100, 40), 3999, [4000]),
        (turning_aside(60, 40), 4096, [2700]),
    ],
)
def test_conversations_keep_to_the_budget(history: list[list[int]], max_tokens: int, tokens: list[int]) -> None:
    assert [computed(batch) for batch in cut(sequences(history), max_tokens)] == tokens


def test_a_conversation_with_replies_of_its_own_keeps_to_the_budget() -> None:
    """Its replies are cut from each other, and take the history that they follow along."""
    history = turning_aside(100, 20)
    batches = cut(sequences(history), 1000)
    assert all(len(batch) == 1 or computed(batch) <= 1000 for batch in batches)
    assert len(batches[-1]) > 20


def completions_that_share_nearly_all() -> list[list[int]]:
    beginning = np.random.default_rng(1).integers(0, 2048, 114).tolist()
    return [[*beginning[: 100 + i % 15], 3000 + i] for i in range(600)]


def test_completions_that_leave_close_to_each_other_keep_to_the_budget() -> None:
    items = sequences(completions_that_share_nearly_all())
    batches = cut(items, 512)
    assert all(computed(batch) <= 512 for batch in batches)
    assert len(batches) == 2  # of 714 tokens, the beginning twice


def test_an_order_is_found_for_thousands_at_any_depth() -> None:
    _, batch = packed(sequences(turning_aside(1500, MIN_SHARED)))
    assert len(batch.tokens) == 1500 * (MIN_SHARED + 5)
    assert branches_above(batch) == 1


# --- load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda i: [5] * 30, lambda i: [i] * 20], ids=["equal", "different"])
def test_a_batch_has_no_more_than_its_load(make: Callable[[int], list[int]]) -> None:
    batches = cut(sequences([make(i) for i in range(10)], load=0.3), max_tokens=10_000)
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert [len(batch) for batch in cut(sequences([make(i) for i in range(3)], load=1.5), 10_000)] == [1, 1, 1]
