"""Who is calling: keys, and the short-lived tokens that stand for them.

A key reads `sk-SECRET` (MinT) or `tml-SECRET` (Tinker's SDK, which accepts no other prefix); with the same secret the
two are the same key. Keys are rows of the database, which `mint keys` writes while the server runs, or were given to
the server when it started. The latter are in memory only: they end with the command line that had them. Such a key is
a tenant of its own, named after its digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Iterable
from functools import partial
from time import monotonic, time

from sqlalchemy.exc import SQLAlchemyError

from mint.errors import AuthenticationError, InvalidTokenError, MintError
from mint.server.tokens import Tokens
from mint.store import keys as store
from mint.store.database import Database
from mint.store.keys import Key, Role

logger = logging.getLogger(__name__)

KEY = re.compile(r"(?:sk|tml)-([A-Za-z0-9_.-]{8,256})")

LOOK_SECONDS = 0.5
"""How old the server's knowledge of its keys may be when a request comes."""


def generate_key() -> str:
    """A fresh `sk-` key with 192 bits of randomness."""
    return f"sk-{secrets.token_urlsafe(24)}"


def secret_of(key: str) -> str | None:
    """The part that `sk-` and `tml-` forms of a key share, or None for something that is no key."""
    match = KEY.fullmatch(key)
    return match[1] if match else None


def digest_of(key: str) -> str:
    """What the database has of a key.

    Raises:
        MintError: it is no key.
    """
    secret = secret_of(key)
    if secret is None:
        raise MintError("an API key must read sk-SECRET or tml-SECRET, SECRET being 8 or more of A–Z a–z 0–9 _ . -")
    return hashlib.sha256(secret.encode()).hexdigest()


def own_tenant(digest: str) -> str:
    """The owner of what a key makes that has no other name."""
    return f"key-{digest[:16]}"


def given_key(key: str, role: Role = Role.USER) -> Key:
    """A key of the command line. Its id follows from its digest, so that a token means the same after a restart.

    Raises:
        MintError: it is no key.
    """
    digest = digest_of(key)
    return Key(digest, own_tenant(digest), role, time(), "given at the start", key_id=int(digest[:13], 16))


class Keys:
    """The keys a server accepts.

    Looked up by digest in memory: how long that takes says nothing of a secret. What `mint keys` has changed is read
    at most twice a second, and before a request is let in that comes later than that.
    """

    def __init__(self, given: Iterable[Key], database: Database, tokens: Tokens) -> None:
        self._database = database
        self._tokens = tokens
        self._by_digest: dict[str, Key] = {}
        self._by_id: dict[int, Key] = {}
        self._given: set[int] = set()
        self._version = 0
        self._looked = float("-inf")
        self._looking = asyncio.Lock()
        for key in given:
            self._put(key)
            assert key.key_id is not None
            self._given.add(key.key_id)

    async def caller(self, credential: str) -> Key:
        """The key that is presented, or that a presented token stands for.

        Raises:
            AuthenticationError: no key, or one that this server does not know or that holds no more.
            InvalidTokenError: a token that holds no more.
        """
        if not credential:
            raise AuthenticationError("no API key; send it in the header X-API-Key, or as Authorization: Bearer")
        await self._look()
        if self.is_token(credential):
            key = self._by_id.get(self._tokens.key_id(credential))
            if key is None or key.ended:
                raise InvalidTokenError("the key that this token stands for does not hold any more")
            return key
        secret = secret_of(credential)
        key = self._by_digest.get(digest_of(credential)) if secret is not None else None
        if key is None:
            raise AuthenticationError("this server does not know the API key that was sent")
        if key.ended:
            raise AuthenticationError(f"the API key that was sent {key.ended}")
        return key

    @staticmethod
    def is_token(credential: str) -> bool:
        """Whether this is meant as a token: all begin with the same letters, and no key does."""
        return credential.startswith("eyJ")

    def look_again(self) -> None:
        """A key was changed here: know of it with the next request."""
        self._looked = float("-inf")

    def is_given(self, key: Key) -> bool:
        """Whether the key is the command line's."""
        return key.key_id in self._given

    async def _look(self) -> None:
        """Read what has changed; one request does it for all."""
        async with self._looking:
            if monotonic() - self._looked < LOOK_SECONDS:
                return
            now, since = monotonic(), self._version
            try:
                changed = await self._database.transaction(partial(store.changed_since, version=since))
            except SQLAlchemyError:
                logger.exception("the keys cannot be read; those known so far hold on")
                changed = []
            for key in changed:
                self._put(key)
                self._version = max(self._version, key.version or 0)
            self._looked = now

    def _put(self, key: Key) -> None:
        assert key.key_id is not None
        self._by_digest[key.digest] = self._by_id[key.key_id] = key
