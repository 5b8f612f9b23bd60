"""The limits of keys.

Requests per second and queued operations free up by themselves: the answer is 429, which the SDK repeats after
`Retry-After`. Live runs and stored bytes do not: the answer is 403, which the SDK shows its user at once. Nothing is
taken in and then held back for a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from sqlalchemy import Connection

from mint.errors import LimitExceededError, RateLimitError
from mint.store import counts
from mint.store.keys import Key


class Rates:
    """A bucket of tokens for each key, which fills at its rate and holds a second's worth, one request at least."""

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[float, float]] = {}

    def take(self, key: Key) -> None:
        """Let a request in.

        Raises:
            RateLimitError: its key's bucket is empty.
        """
        rate = key.requests_per_second
        if rate is None:
            return
        assert key.key_id is not None
        now, room = monotonic(), max(1.0, rate)
        left, since = self._buckets.get(key.key_id, (room, now))
        left = min(room, left + (now - since) * rate)
        if left < 1:
            message = f"this key may send {rate:g} requests a second"
            raise RateLimitError(message, field="requests_per_second", retry_after=(1 - left) / rate)
        self._buckets[key.key_id] = left - 1, now


@dataclass(frozen=True)
class Asked:
    """What of an operation limits are about.

    Attributes:
        makes_run: it begins a run.
        saves: it leaves a checkpoint.
        awaited: its run can go on with this operation only: a queue that is full of later ones must not keep it out.
        heard_since: a session that was not heard of since then, in Unix seconds, holds no run any more.
    """

    makes_run: bool
    saves: bool
    awaited: bool
    heard_since: float


def check(connection: Connection, key: Key, asked: Asked) -> None:
    """Refuse an operation that a limit of its key has no room for.

    Raises:
        RateLimitError: too much waits or is under way already.
        LimitExceededError: too much is there already.
    """
    if not asked.awaited:
        _check_queue(connection, key)
    if asked.makes_run:
        _check_live_runs(connection, key, asked.heard_since)
    if asked.saves:
        check_stored_bytes(connection, key)


def _check_live_runs(connection: Connection, key: Key, heard_since: float) -> None:
    limit = key.max_live_runs
    if limit is not None and (live := counts.live_runs(connection, key.owner, heard_since)) >= limit:
        raise LimitExceededError(
            f"is {limit}, and {key.owner} has {live} runs in open sessions; finish one of these", field="max_live_runs"
        )


def _check_queue(connection: Connection, key: Key) -> None:
    limit = key.max_queued_operations
    if limit is not None and (queued := counts.pending_operations(connection, key.owner)) >= limit:
        raise RateLimitError(
            f"is {limit}, and {key.owner} has {queued} operations without a result", field="max_queued_operations"
        )


def check_stored_bytes(connection: Connection, key: Key, adding: int = 0) -> None:
    """Refuse another checkpoint, of `adding` bytes where that is known.

    Raises:
        LimitExceededError: the key's owner has as many bytes as it allows, or would have more.
    """
    # saves that are under way count once their size is known
    limit = key.max_stored_bytes
    if limit is None:
        return
    stored = counts.stored_bytes(connection, key.owner)
    if stored >= limit or stored + adding > limit:
        more = f", and this one has {adding}" if adding else ""
        raise LimitExceededError(
            f"is {limit}, and {key.owner} has checkpoints of {stored} bytes{more}; delete some",
            field="max_stored_bytes",
        )
