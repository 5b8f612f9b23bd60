"""The server's fixtures, here too."""

from tests.server.inprocess import serve

__all__ = ["serve"]
