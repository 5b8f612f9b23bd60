"""What was computed and for whom, in buckets of an hour.

A bucket grows in the transaction that journals an operation's result, so each operation counts once, whatever is
replayed later, and the count outlives the journal's rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    PrimaryKeyConstraint,
    String,
    Table,
    bindparam,
    select,
    update,
)

from mint.store.schema import metadata

HOUR = 3600


class Use(StrEnum):
    """Tokens that passes computed, prompts' tokens, those that were known already, tokens drawn, checkpoints saved."""

    TRAINING = "training"
    PREFILL = "prefill"
    CACHED_PREFILL = "cached_prefill"
    SAMPLED = "sampled"
    CHECKPOINTS = "checkpoints"


TOKENS = frozenset(Use) - {Use.CHECKPOINTS}


@dataclass(frozen=True)
class Bucket:
    """What a bucket is of. `hour` is its first second; `stream` the run or sampling session."""

    hour: int
    owner: str
    session_id: str
    stream: str
    base_model: str
    use: Use


NAMES = tuple(field.name for field in fields(Bucket))

usage = Table(
    "usage",
    metadata,
    Column("hour", BigInteger, nullable=False),
    Column("owner", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("stream", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("use", String, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "stream", "use", "owner", "session_id", "base_model"),
    Index("usage_by_owner", "owner", "hour"),
)
_ADD = (
    update(usage)
    .where(*(usage.c[name] == bindparam(f"{name}_") for name in NAMES))
    .values(quantity=usage.c.quantity + bindparam("more"))
)
_INSERT = usage.insert()


def add(connection: Connection, bucket: Bucket, quantity: int) -> None:
    """Count."""
    row = asdict(bucket)
    if connection.execute(_ADD, {f"{name}_": row[name] for name in NAMES} | {"more": quantity}).rowcount == 0:
        connection.execute(_INSERT, row | {"quantity": quantity})


def between(connection: Connection, since: int, before: int, owner: str | None = None) -> list[tuple[Bucket, int]]:
    """Buckets of a span of time, by hour and then largest first; of one owner only, where one is given."""
    query = select(usage).where(usage.c.hour >= since, usage.c.hour < before)
    if owner is not None:
        query = query.where(usage.c.owner == owner)
    rows = connection.execute(query.order_by(usage.c.hour, usage.c.quantity.desc(), usage.c.stream, usage.c.use))
    return [(Bucket(*(getattr(row, name) for name in NAMES)), row.quantity) for row in rows]
