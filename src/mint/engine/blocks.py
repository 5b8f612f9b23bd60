"""Which blocks of the key/value memory are free, which are held, and what the others still remember.

A block that is full has a key: a digest of its tokens, of all tokens before them, and of the adapter revision they ran
through. Whoever needs a block of the same key takes hold of it instead of computing it again (as in vLLM: Kwon et al.,
2023, arXiv 2309.06180). A block that nobody holds keeps what is in it until its place is needed; the least recently
used goes first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from mint.engine.core import Int32Array, Sample


def root_key(revision: str | None) -> bytes:
    """The key before the first block of a sequence; None is the base model."""
    return _digest(b"base" if revision is None else b"revision " + revision.encode())


def seeing_key(before: bytes, command: Sample) -> bytes:
    """The key before the first block of a prompt whose tokens see more than those before them: images, or all of it."""
    if command.images:
        places = b"".join(placed.start.to_bytes(8, "big") + placed.image.key for placed in command.images)
        before = _digest(b"images" + before + places)
    return _digest(b"whole" + before + command.prompt.tobytes()) if command.whole else before


def next_key(before: bytes, tokens: Int32Array) -> bytes:
    """The key of the block that holds `tokens`, after the block whose key is `before`."""
    return _digest(before + tokens.tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


class BlockPool:
    """All blocks of one key/value memory, by number."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()  # with a key, the least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._empty) + len(self._unheld)

    def take(self, count: int) -> list[int]:
        """`count` blocks without a key, held once; the caller has seen that so many are free."""
        assert count <= self.num_free, "more blocks taken than are free"
        blocks = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._unheld[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block of a sequence, in its order."""
        # backwards: the end of a sequence is of no use without its beginning, so it is to go first
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._keys:
                    self._unheld[block] = None
                else:
                    self._empty.append(block)

    def remember(self, block: int, key: bytes) -> None:
        """A block is full. Where another has the same key, that one stays the one that is found."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that have the first of these keys, up to the first key that none has. They are not held yet."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_unheld(self, blocks: Sequence[int]) -> int:
        """How many of these count as free until they are held."""
        return sum(self._holders[block] == 0 for block in blocks)

    def _evict(self) -> int:
        block, _ = self._unheld.popitem(last=False)
        del self._by_key[self._keys.pop(block)]
        return block
