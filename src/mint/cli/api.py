"""Requests of commands to a server, found as clients find it."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import httpx
import typer

from mint.cli.tables import stop
from mint.client import discovery

BaseUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Of the server.", show_default="$MINT_BASE_URL, $TINKER_BASE_URL, or the one on this machine"),
]
Limit: TypeAlias = Annotated[int, typer.Option(help="How many.", min=1, max=1000)]
Offset: TypeAlias = Annotated[int, typer.Option(help="How many of the newest to leave out.", min=0)]

SECONDS = 30.0


class Api:
    """A server and the key for it. Whatever goes wrong ends the command and says why."""

    def __init__(self, base_url: str | None) -> None:
        endpoint = discovery.resolve(base_url)
        if endpoint.base_url is None:
            stop("no server runs here; start one with `mint serve`, or name one with --base-url or MINT_BASE_URL")
        if endpoint.api_key is None:
            stop(f"no key for {endpoint.base_url}; set MINT_API_KEY")
        self.base_url = endpoint.base_url.rstrip("/")
        self.api_key = endpoint.api_key

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """The JSON that a route below `/api/v1/` answers; None where it answers nothing."""
        response = self.send(method, f"/api/v1/{path}", **request)
        if not response.is_success:
            stop(reason(response))
        return response.json() if response.content else None

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Any answer of the server."""
        url = f"{self.base_url}{path}"
        try:
            return httpx.request(method, url, headers={"X-API-Key": self.api_key}, timeout=SECONDS, **request)
        except httpx.TimeoutException:
            stop(f"{self.base_url} took longer than {SECONDS:g} s to answer")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            stop(f"no server answers at {self.base_url} ({error})")


def reason(response: httpx.Response) -> str:
    """Why a server refused, in its own words if it has some."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code} {response.reason_phrase}; is that a MinT server?"
