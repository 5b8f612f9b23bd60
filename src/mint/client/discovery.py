"""Which server a client goes to and with which key.

One rule in three steps, for the base URL and the key alike: the constructor's argument, then `MINT_…`, then
`TINKER_…` in the environment (an empty value counts as unset). What is still missing comes from the
credentials file, of the newest running server that agrees with what is known: so a key from the file goes
to the server that it belongs to and to no other.

Read anew at every call. Knows the environment and the credentials file; must not import the SDK.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from mint.client import credentials
from mint.client.credentials import LocalServer

# The two prefixes mark the same secret: a MinT server takes either, an unpatched SDK only the second.
KEY_PREFIXES = ("sk-", "tml-")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address and the key for it, and where each was found; None where nothing was."""

    base_url: str | None
    api_key: str | None
    base_url_from: str | None
    api_key_from: str | None
    server: LocalServer | None = None
    """The running server of this user that the address or the key, or both, were taken from."""

    def __repr__(self) -> str:
        return (
            f"Endpoint(base_url={self.base_url!r}, api_key={_redacted(self.api_key)!r}, "
            f"base_url_from={self.base_url_from!r}, api_key_from={self.api_key_from!r})"
        )


def resolve(base_url: object = None, api_key: str | None = None) -> Endpoint:
    """The endpoint of a client that is being constructed with these two arguments."""
    url = _Setting(str(base_url), "the base_url argument") if base_url else _from_environment("BASE_URL")
    key = _Setting(api_key, "the api_key argument") if api_key else _from_environment("API_KEY")
    server = None if url.value and key.value else _agreeing_server(url.value, key.value)
    if server is not None:
        url = url if url.value else _Setting(server.base_url, str(credentials.path()))
        key = key if key.value else _Setting(server.api_key, str(credentials.path()))
    return Endpoint(url.value, key.value, url.source, key.source, server)


def environment_base_url() -> str | None:
    """The base URL that the environment names."""
    return _from_environment("BASE_URL").value


def environment_api_key() -> str | None:
    """The key that the environment names."""
    return _from_environment("API_KEY").value


class _Setting(NamedTuple):
    value: str | None = None
    source: str | None = None


def _from_environment(name: str) -> _Setting:
    for variable in (f"MINT_{name}", f"TINKER_{name}"):
        if value := os.environ.get(variable):
            return _Setting(value, f"${variable}")
    return _Setting()


def _agreeing_server(base_url: str | None, api_key: str | None) -> LocalServer | None:
    """The newest running server that contradicts nothing of what is known."""
    if not api_key and os.environ.get("TINKER_CREDENTIAL_CMD"):
        return None  # the user chose where keys come from: the SDK runs that command
    for server in credentials.read():
        same_url = not base_url or credentials.canonical_url(base_url) == server.base_url
        same_key = not api_key or _secret(api_key) == _secret(server.api_key)
        if same_url and same_key:
            return server
    return None


def _secret(api_key: str) -> str:
    for prefix in KEY_PREFIXES:
        if api_key.startswith(prefix):
            return api_key.removeprefix(prefix)
    return api_key


def _redacted(api_key: str | None) -> str | None:
    """Enough of a key to tell it from another, too little to use it."""
    if api_key is None:
        return None
    prefix = api_key[: len(api_key) - len(_secret(api_key))]
    return f"{prefix}…{api_key[-4:]}" if len(api_key) >= 20 else f"{prefix}…"
