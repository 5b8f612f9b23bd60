"""Which operation a body would have been that no reader took: what is left of its number.

Reads more than a request may be, and whatever its headers say: the client has used the number up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import DecodeError

from mint.wire import messages_pb2 as pb
from mint.wire.documents import parse
from mint.wire.requests import NumberedRequest


def numbering(body: bytes) -> tuple[str, int] | None:
    """Run and sequence number of an operation's body; None where they cannot be read."""
    for read in _READERS:
        # what is no Unicode cannot be the id of a run
        with suppress(ValueError, RecursionError, DecodeError):
            run_id, seq_id = read(body)
            run_id.encode()
            return run_id, seq_id
    return None


def _of_json(body: bytes) -> tuple[str, int]:
    request = NumberedRequest.model_validate(parse(body))
    return request.model_id, request.seq_id


def _of_protobuf(body: bytes) -> tuple[str, int]:
    message = pb.ForwardBackwardRequest.FromString(body)
    return message.model_id, message.seq_id


_READERS: tuple[Callable[[bytes], tuple[str, int]], ...] = (_of_json, _of_protobuf)
