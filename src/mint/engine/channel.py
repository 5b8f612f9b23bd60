"""Messages between server process and worker process: pickles with a length in front, over a socket pair.

Both ends are processes of ours, started one by the other; no byte of a client's is ever unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

HEADER = struct.Struct("<Q")


def encode(message: object) -> bytes:
    """One message, ready to send."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


def decode(body: bytes | bytearray) -> Any:
    """The message in `body`, which came without its header."""
    return pickle.loads(body)


def receive(connection: socket.socket) -> Any:
    """Wait for one message.

    Raises:
        EOFError: the other side has closed.
    """
    (size,) = HEADER.unpack(_read_exactly(connection, HEADER.size))
    return decode(_read_exactly(connection, size))


def _read_exactly(connection: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError("the other side has closed")
        view = view[count:]
    return buffer
