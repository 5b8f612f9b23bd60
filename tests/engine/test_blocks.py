"""Which blocks are free, held and remembered, against a plain model of it."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mint.engine.blocks import BlockPool, next_key, root_key

NUM_BLOCKS = 6
KEYS = [bytes([letter]) for letter in b"abcdefgh"]


class Pools(RuleBasedStateMachine):
    """A pool beside lists and dictionaries that say the same without cleverness.

    `holders` lists each sequence's blocks; `keys` has what each block is remembered by; `unheld` are remembered blocks
    that nobody holds, in the order in which they are to go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[list[int]] = []
        self.keys: dict[int, bytes] = {}
        self.unheld: list[int] = []

    def held(self) -> set[int]:
        return {block for blocks in self.holders for block in blocks}

    @rule(count=st.integers(0, NUM_BLOCKS))
    def take(self, count: int) -> None:
        if count > self.pool.num_free:
            return
        empty = NUM_BLOCKS - len(self.held()) - len(self.unheld)
        evicted = self.unheld[: max(0, count - empty)]
        blocks = self.pool.take(count)
        assert len(set(blocks)) == count
        assert not set(blocks) & self.held(), "a block of another holder's"
        assert set(blocks) & set(self.unheld) == set(evicted), "empty ones first, then the least recently used"
        self.unheld = self.unheld[len(evicted) :]
        for block in evicted:
            del self.keys[block]
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(blocks)
        left = [block for block in blocks if block not in self.held() and block in self.keys]
        self.unheld += reversed(left)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def remember(self, data: st.DataObject, key: bytes) -> None:
        block = data.draw(st.sampled_from(sorted(self.held())))
        if block in self.keys:
            return  # a full block stays what it is
        self.pool.remember(block, key)
        if key not in self.keys.values():
            self.keys[block] = key

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4, unique=True))
    def find_and_hold(self, keys: list[bytes]) -> None:
        by_key = {key: block for block, key in self.keys.items()}
        expected = []
        for key in keys:
            if key not in by_key:
                break
            expected.append(by_key[key])
        found = self.pool.find(iter(keys))
        assert found == expected
        assert self.pool.num_unheld(found) == sum(block in self.unheld for block in found)
        self.pool.hold(found)
        self.unheld = [block for block in self.unheld if block not in found]
        self.holders.append(found)

    @invariant()
    def counts_agree(self) -> None:
        assert self.pool.num_free == NUM_BLOCKS - len(self.held())
        assert list(self.pool._unheld) == self.unheld
        assert self.pool._holders == [sum(b.count(block) for b in self.holders) for block in range(NUM_BLOCKS)]
        assert self.pool._keys == self.keys
        assert self.pool._by_key == {key: block for block, key in self.keys.items()}


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)


def test_the_beginning_of_a_sequence_outlives_its_end() -> None:
    pool = BlockPool(4)
    blocks = pool.take(4)
    for block, key in zip(blocks, KEYS, strict=False):
        pool.remember(block, key)
    pool.release(blocks)
    for left in range(3, -1, -1):
        pool.take(1)
        assert pool.find(KEYS[:4]) == blocks[:left]


def test_what_was_used_again_goes_last() -> None:
    pool = BlockPool(3)
    for key in KEYS[:3]:
        (block,) = pool.take(1)
        pool.remember(block, key)
        pool.release([block])
    used = pool.find(KEYS[:1])
    pool.hold(used)
    pool.release(used)
    pool.take(2)
    assert pool.find(KEYS[:1]) == used
    assert not pool.find(KEYS[1:2])
    assert not pool.find(KEYS[2:3])


def test_a_key_tells_revision_tokens_and_what_is_before() -> None:
    one, other = np.array([1, 2], np.int32), np.array([1, 3], np.int32)
    roots = [root_key(None), root_key("a"), root_key("b"), root_key(""), root_key("base")]
    firsts = [next_key(root, tokens) for root in roots for tokens in (one, other)]
    seconds = [next_key(first, tokens) for first in firsts for tokens in (one, other)]
    assert len({*roots, *firsts, *seconds}) == len(roots) + len(firsts) + len(seconds)
    assert next_key(roots[0], one.copy()) == firsts[0]
