"""Sequences that begin alike, as a forest: what several share is there once.

A group of completions of one prompt is a root, the prompt, with the completions as its leaves; the turns of a
conversation are a chain. Every node is a stretch of tokens that attends to itself and to the nodes above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mint.engine.core import Int32Array

MIN_SHARED = 16
"""Tokens that a node must save; for fewer, another block of attention costs more than they do."""

MAX_DEPTH = 32
"""Nodes above each other: each is one more block of attention for the tokens below it."""


@dataclass
class Node:
    """Tokens start ≤ t < stop of sequence `source`, which is one of those that go through it."""

    source: int
    start: int
    stop: int
    children: list[Node] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    """Sequences that end here."""

    @property
    def num_tokens(self) -> int:
        """Of this node alone."""
        return self.stop - self.start


def lexicographic(sequences: Sequence[Int32Array]) -> list[int]:
    """The order in which sequences that share the most stand next to each other."""
    keys = [tokens.astype(">i4").tobytes() for tokens in sequences]
    return sorted(range(len(sequences)), key=keys.__getitem__)


def common_prefix(a: Int32Array, b: Int32Array) -> int:
    """How many tokens two sequences begin with together; 0 where it is not worth sharing."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    common = int(differ[0]) if len(differ) else length
    return common if common >= MIN_SHARED else 0


def forest(sequences: Sequence[Int32Array]) -> list[Node]:
    """The roots that hold all sequences; equal lengths stand side by side."""
    order = lexicographic(sequences)
    shared = [common_prefix(sequences[a], sequences[b]) for a, b in pairwise(order)]
    return _split(sequences, order, shared, depth=0, level=0)


def _split(
    sequences: Sequence[Int32Array], order: Sequence[int], shared: Sequence[int], depth: int, level: int
) -> list[Node]:
    """Nodes for `order`, whose sequences are equal up to `depth`; `shared[i]` is what order[i] and order[i + 1]
    share."""
    nodes = []
    for first, stop in _alike(shared, len(order), depth + MIN_SHARED if level < MAX_DEPTH else None):
        source = order[first]
        if stop - first == 1:
            nodes.append(Node(source, depth, len(sequences[source]), members=[source]))
            continue
        bottom = min(shared[first : stop - 1])
        node = Node(source, depth, bottom)
        # those that end here stand first: nothing shorter begins like this
        node.members = [index for index in order[first:stop] if len(sequences[index]) == bottom]
        below = first + len(node.members)
        if below < stop:
            node.children = _split(sequences, order[below:stop], shared[below : stop - 1], bottom, level + 1)
        nodes.append(node)
    return sorted(nodes, key=lambda node: (bool(node.children), node.num_tokens))


def _alike(shared: Sequence[int], count: int, least: int | None) -> Iterator[tuple[int, int]]:
    """Stretches of neighbours that share at least `least` tokens; None keeps everything apart."""
    first = 0
    for place in range(1, count + 1):
        if place == count or least is None or shared[place - 1] < least:
            yield first, place
            first = place
