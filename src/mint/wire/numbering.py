"""Which operation a request would have been: what a refused request still tells."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from pydantic import ValidationError

from mint.wire import messages_pb2 as pb
from mint.wire.passes import PROTOBUF
from mint.wire.requests import NumberedRequest


def numbering(body: bytes, content_type: str) -> tuple[str, int]:
    """Run and sequence number of an operation's body; ("", 0) where they cannot be read."""
    try:
        if content_type == PROTOBUF:
            message = pb.ForwardBackwardRequest.FromString(body)
            return message.model_id, message.seq_id
        request = NumberedRequest.model_validate_json(body)
    except (DecodeError, ValidationError):
        return "", 0
    return request.model_id, request.seq_id
