"""Links that need no key: signed by this process, for a while.

Clients of any kind follow them, so they are whole URLs, with the path that a reverse proxy has before the server's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_bytes
from time import time
from urllib.parse import urlencode

from fastapi import Request

from mint.errors import AuthenticationError

LINK_SECONDS = 3600


PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True)
class Link:
    """A URL that holds until `expires`."""

    url: str
    expires: datetime


def _base_url(http: Request) -> str:
    """Where the client reached the server: a proxy says what it has taken off the path in `X-Forwarded-Prefix`."""
    prefix = http.headers.get("x-forwarded-prefix", "").rstrip("/")
    return str(http.base_url).rstrip("/") + (prefix if PREFIX.fullmatch(prefix) else "")


class Signer:
    """Signs with a secret that ends with the process: after a restart, clients ask for a new link."""

    def __init__(self) -> None:
        self._secret = token_bytes(32)

    def link(self, http: Request, route: str, **names: str) -> Link:
        """A link to a route of this server, by its name and the names in its path."""
        path = http.app.url_path_for(route, **names)
        expires = int(time()) + LINK_SECONDS
        query = urlencode({"expires": expires, "signature": self._signature(path, str(expires))})
        return Link(f"{_base_url(http)}{path}?{query}", datetime.fromtimestamp(expires, UTC))

    def check(self, http: Request, expires: str, signature: str) -> None:
        """See that a request has come by a link of ours.

        Raises:
            AuthenticationError: it has not, or the link is too old.
        """
        route = http.scope["route"].name
        ours = self._signature(http.app.url_path_for(route, **http.path_params), expires)
        if not hmac.compare_digest(ours.encode(), signature.encode()) or int(expires) <= time():
            raise AuthenticationError("the link was not made by this server process, or has expired; ask for a new one")

    def _signature(self, subject: str, expires: str) -> str:
        return hmac.new(self._secret, f"{subject}\n{expires}".encode(), hashlib.sha256).hexdigest()
