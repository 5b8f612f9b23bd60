"""Links that need no key: signed by this process, for a while."""

from __future__ import annotations

import hashlib
import hmac
from secrets import token_bytes
from time import time

from mint.errors import AuthenticationError

LINK_SECONDS = 3600


class Signer:
    """Signs with a secret that ends with the process: after a restart, clients ask for a new link."""

    def __init__(self) -> None:
        self._secret = token_bytes(32)

    def sign(self, subject: str) -> dict[str, str]:
        """Query parameters that let their bearer at `subject`."""
        expires = str(int(time()) + LINK_SECONDS)
        return {"expires": expires, "signature": self._signature(subject, expires)}

    def check(self, subject: str, expires: str, signature: str) -> None:
        """See that a link is one of ours.

        Raises:
            AuthenticationError: it is not, or is too old.
        """
        ours = self._signature(subject, expires)
        if not hmac.compare_digest(ours.encode(), signature.encode()) or int(expires) <= time():
            raise AuthenticationError("the link was not made by this server process, or has expired; ask for a new one")

    def _signature(self, subject: str, expires: str) -> str:
        return hmac.new(self._secret, f"{subject}\n{expires}".encode(), hashlib.sha256).hexdigest()
