"""Keys and owners.

A key reads `sk-SECRET` (MinT) or `tml-SECRET` (Tinker's SDK, which accepts no other prefix); with the same
secret the two are the same key. The owner of an object is a digest of the secret, so the database holds no key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from mint.errors import AuthenticationError, MintError

KEY = re.compile(r"(?:sk|tml)-([A-Za-z0-9_.-]{8,256})")


def generate_key() -> str:
    """A fresh `sk-` key with 192 bits of randomness."""
    return f"sk-{secrets.token_urlsafe(24)}"


def secret_of(key: str) -> str | None:
    """The part that `sk-` and `tml-` forms of a key share, or None for something that is no key."""
    match = KEY.fullmatch(key)
    return match[1] if match else None


class Keys:
    """The keys a server accepts.

    Raises:
        MintError: one of them is no key.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests: list[str] = []
        for key in keys:
            secret = secret_of(key)
            if secret is None:
                raise MintError(
                    "an API key must read sk-SECRET or tml-SECRET, SECRET being 8 or more of A–Z a–z 0–9 _ . -"
                )
            self._digests.append(_digest(secret))

    def owner(self, key: str | None) -> str:
        """Who presents this key.

        Raises:
            AuthenticationError: no key, or one that this server does not know.
        """
        if not key:
            raise AuthenticationError("no API key; send it in the header X-API-Key, or as Authorization: Bearer")
        digest = _digest(secret_of(key) or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all: takes equal time
        if True not in matches:
            raise AuthenticationError("this server does not know the API key that was sent")
        return f"key-{digest[:16]}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
