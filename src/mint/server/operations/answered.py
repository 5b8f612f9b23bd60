"""Operations that need no worker: they are journaled together with their answer."""

from __future__ import annotations

import json
from secrets import token_hex
from time import time
from typing import Any

from mint.store.schema import Operation, Status
from mint.wire.passes import JSON


def answered(
    kind: str, number: tuple[str, int], owner: str, answer: dict[str, Any], facts: dict[str, Any] | None = None
) -> Operation:
    """One that has its result; without a payload, since it is never carried out again.

    Args:
        number: stream and number.
    """
    now = time()
    return Operation(
        request_id=f"req-{token_hex(12)}",
        stream=number[0],
        seq_id=number[1],
        owner=owner,
        kind=kind,
        status=Status.DONE,
        payload_type=JSON,
        payload=b"",
        facts=facts or {},
        created_at=now,
        result_type=JSON,
        result=json.dumps(answer).encode(),
        finished_at=now,
    )
