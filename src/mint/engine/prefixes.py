"""Sequences that begin alike, in an order in which what they share need be there once.

Such sequences are a tree, and the order walks it depth first: then every sequence leaves the one before it at one
place, and only the tokens from there on are new. They are a branch, which attends to itself and to the branches that it
grew from. Where the tree forks, the side with the most tokens comes first and goes on as the branch that it is on; so a
token is log2(tokens) branches away from the root at most, however often its sequence forks on the way. The turns of a
conversation, each of which ends or turns aside somewhere along the longest, are one branch with twigs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mint.engine.core import Datum, Int32Array

MIN_SHARED = 16
"""Tokens that a block of attention must save; for fewer it costs more than they do."""


@dataclass
class _Subtree:
    """Sequences in the order of the walk, and how many different tokens they have from the root on."""

    order: list[int]
    num_tokens: int


@dataclass
class _Fork:
    """Subtrees that have their first `shared` tokens in common, and no more."""

    shared: int
    subtrees: list[_Subtree]

    def joined(self) -> _Subtree:
        """The largest first, then those of equal lengths side by side."""
        *others, largest = sorted(self.subtrees, key=lambda subtree: subtree.num_tokens)
        subtrees = [largest, *others] if self.shared else [*others, largest]
        first, *rest = subtrees
        for subtree in rest:
            first.order.extend(subtree.order)
            first.num_tokens += subtree.num_tokens - self.shared
        return first


def sharing_order(sequences: Sequence[Int32Array]) -> list[int]:
    """The order of the walk, for one sequence or more."""
    keys = [tokens.astype(">i4").tobytes() for tokens in sequences]
    alphabetic = sorted(range(len(sequences)), key=keys.__getitem__)
    shared = [common_prefix(sequences[a], sequences[b]) for a, b in pairwise(alphabetic)]
    forks: list[_Fork] = []  # that may get further subtrees, each shares more than the one before it
    for index, with_next in zip(alphabetic, [*shared, -1], strict=True):
        subtree = _Subtree([index], len(sequences[index]))
        while forks and forks[-1].shared > with_next:
            forks[-1].subtrees.append(subtree)
            subtree = forks.pop().joined()
        if forks and forks[-1].shared == with_next:
            forks[-1].subtrees.append(subtree)
        else:
            forks.append(_Fork(with_next, [subtree]))
    return forks[0].subtrees[0].order


def common_prefix(a: Int32Array, b: Int32Array) -> int:
    """How many tokens two sequences begin with together; 0 where it is not worth sharing."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    common = int(differ[0]) if len(differ) else length
    return common if common >= MIN_SHARED else 0


def family(owner: int, index: int, datum: Datum, window: int | None) -> Hashable:
    """What tells datums apart that must not share a beginning; those of a pass, `owner`, may.

    A window narrower than the datum hides some of the beginning from some. Datums with images share if these are the
    same; those with blocks, if all that is not causal is their first block, and that is the same.
    """
    if window is not None and len(datum.tokens) > window:
        return owner, index
    images = tuple((placed.start, placed.image.key) for placed in datum.images)
    if datum.blocks is None:
        return (owner, images) if images else owner
    whole = int(np.searchsorted(datum.blocks, datum.blocks[0], side="right"))
    if not (np.diff(datum.blocks[whole:]) > 0).all():
        return owner, index
    return owner, images, datum.tokens[:whole].tobytes()
