"""Signed tokens (JWT) that stand for a key for an hour."""

from __future__ import annotations

import secrets
from pathlib import Path
from time import time

import jwt

from mint.errors import InvalidTokenError
from mint.store.keys import Key
from mint.store.private import read_or_create

LIFETIME_SECONDS = 3600
ALGORITHM = "HS256"
REQUIRED = ["exp", "iat", "sub", "key_id"]


class Tokens:
    """Issues and reads tokens. They are signed by a secret of the data folder, so they outlive a restart.

    A token names its key: it is good as long as the key is, and never longer than an hour.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._secret = read_or_create(data_dir / "token_secret", lambda: secrets.token_urlsafe(32))

    def issue(self, key: Key) -> str:
        """A token for a key. A tenant is the SDK's user and organization in one; its name may be an e-mail address."""
        now = int(time())
        claims = {"iat": now, "exp": now + LIFETIME_SECONDS, "sub": key.owner, "org_id": key.owner}
        claims |= {"email": key.owner if "@" in key.owner else "", "key_id": key.key_id}
        return jwt.encode(claims, self._secret, ALGORITHM)

    def key_id(self, token: str) -> int:
        """The key that a token stands for.

        Raises:
            InvalidTokenError: it has expired, or is none of ours.
        """
        try:
            claims = jwt.decode(token, self._secret, [ALGORITHM], options={"require": REQUIRED})
        except jwt.PyJWTError as error:
            raise InvalidTokenError(f"the token is not good: {error}") from None
        key_id: int = claims["key_id"]
        return key_id
