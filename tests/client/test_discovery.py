"""Which server and which key: the order of precedence, and that a key goes to its own server only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

import mint.mint as mintx
from mint.client import credentials, discovery
from mint.client.credentials import LocalServer

FILE_URL, FILE_KEY = "http://127.0.0.1:8000", "sk-file"
OTHER = "http://other:9000"


@dataclass
class Case:
    name: str
    expected: tuple[str | None, str | None]
    env: dict[str, str] = field(default_factory=dict)
    base_url: str | None = None
    api_key: str | None = None


MINT = {"MINT_BASE_URL": "http://mint", "MINT_API_KEY": "sk-mint"}
TINKER = {"TINKER_BASE_URL": "http://tinker", "TINKER_API_KEY": "tml-tinker"}

COMMAND = {"TINKER_CREDENTIAL_CMD": "echo tml-command"}


def empty(variables: dict[str, str]) -> dict[str, str]:
    return dict.fromkeys(variables, "")


CASES = [
    Case("nothing is set: the file, both together", (FILE_URL, FILE_KEY)),
    Case("MinT's variables win over Tinker's", ("http://mint", "sk-mint"), {**MINT, **TINKER}),
    Case("Tinker's variables win over the file", ("http://tinker", "tml-tinker"), TINKER),
    Case("arguments win over all", ("http://arg", "sk-arg"), {**MINT, **TINKER}, "http://arg", "sk-arg"),
    Case("one argument, one MinT variable", ("http://arg", "sk-mint"), {**MINT, **TINKER}, "http://arg"),
    Case("the other way round", ("http://mint", "sk-arg"), {**MINT, **TINKER}, api_key="sk-arg"),
    Case("a pair is settled one by one", ("http://mint", "tml-tinker"), {**MINT, **TINKER, "MINT_API_KEY": ""}),
    Case("an empty MinT value counts as unset", ("http://tinker", "tml-tinker"), {**empty(MINT), **TINKER}),
    Case("empty values everywhere", (FILE_URL, FILE_KEY), empty({**MINT, **TINKER}), "", ""),
    # A base URL alone: the file's key for the file's server, and for no other.
    Case("MINT_BASE_URL is the file's", (FILE_URL, FILE_KEY), {"MINT_BASE_URL": FILE_URL}),
    Case("TINKER_BASE_URL is the file's", (FILE_URL, FILE_KEY), {"TINKER_BASE_URL": FILE_URL}),
    Case("the URL argument is the file's", (FILE_URL, FILE_KEY), base_url=FILE_URL),
    Case("in another spelling", (f"{FILE_URL}/", FILE_KEY), base_url=f"{FILE_URL}/"),
    Case("MINT_BASE_URL is another", (OTHER, None), {"MINT_BASE_URL": OTHER}),
    Case("TINKER_BASE_URL is another", (OTHER, None), {"TINKER_BASE_URL": OTHER}),
    Case("only the URL variable is the file's", (OTHER, None), {"MINT_BASE_URL": FILE_URL}, OTHER),
    Case("another port", ("http://127.0.0.1:8001", None), base_url="http://127.0.0.1:8001"),
    Case("another scheme", ("https://127.0.0.1:8000", None), base_url="https://127.0.0.1:8000"),
    Case("a longer path", (f"{FILE_URL}/train", None), base_url=f"{FILE_URL}/train"),
    Case("another name of the host", ("http://localhost:8000", None), base_url="http://localhost:8000"),
    Case("the address as user name", (f"{FILE_URL}@evil", None), base_url=f"{FILE_URL}@evil"),
    # A key alone: the file's base URL for the file's key, and for no other.
    Case("MINT_API_KEY is the file's", (FILE_URL, FILE_KEY), {"MINT_API_KEY": FILE_KEY}),
    Case("in Tinker's spelling, sent as given", (FILE_URL, "tml-file"), {"TINKER_API_KEY": "tml-file"}),
    Case("without a prefix", (FILE_URL, "file"), api_key="file"),
    Case("MINT_API_KEY is another", (None, "sk-mint"), {"MINT_API_KEY": "sk-mint"}),
    Case("TINKER_API_KEY is another", (None, "tml-tinker"), {"TINKER_API_KEY": "tml-tinker"}),
    Case("only the key variable is the file's", (None, "sk-arg"), {"MINT_API_KEY": FILE_KEY}, api_key="sk-arg"),
    # A command that prints keys is a choice of its own.
    Case("a command", (None, None), COMMAND),
    Case("a command and the file's URL", (FILE_URL, None), {**COMMAND, "MINT_BASE_URL": FILE_URL}),
    Case("a command and the file's key", (FILE_URL, FILE_KEY), {**COMMAND, "MINT_API_KEY": FILE_KEY}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_precedence(case: Case, monkeypatch: pytest.MonkeyPatch, remember: Callable[..., LocalServer]) -> None:
    remember(FILE_URL, FILE_KEY)
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    found = discovery.resolve(case.base_url, case.api_key)
    assert (found.base_url, found.api_key) == case.expected


def test_without_a_file_nothing_is_made_up() -> None:
    assert discovery.resolve() == discovery.Endpoint(None, None, None, None)


def test_each_server_gets_its_own_key_and_the_newest_is_the_default(
    remember: Callable[..., LocalServer],
) -> None:
    remember("http://127.0.0.1:1", "sk-1", started_at=10.0)
    remember("http://127.0.0.1:2", "sk-2", started_at=20.0)
    assert discovery.resolve().base_url == "http://127.0.0.1:2"
    assert discovery.resolve("http://127.0.0.1:1").api_key == "sk-1"
    assert discovery.resolve(api_key="sk-1").base_url == "http://127.0.0.1:1"


def test_the_file_is_not_read_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> list[LocalServer]:
        raise AssertionError

    monkeypatch.setattr(credentials, "read", read)
    assert discovery.resolve("http://h", "sk-k").api_key == "sk-k"


def test_credentials_says_what_was_found_where_and_keeps_the_key_to_itself(
    monkeypatch: pytest.MonkeyPatch, remember: Callable[..., LocalServer]
) -> None:
    remember(FILE_URL, "sk-0123456789abcdefghij")
    found = mintx.credentials()
    assert (found.base_url, found.api_key) == (FILE_URL, "sk-0123456789abcdefghij")
    assert found.base_url_from == found.api_key_from == str(credentials.path())
    assert "sk-…ghij" in repr(found)
    assert "0123456789" not in repr(found) + str(found)
    monkeypatch.setenv("MINT_BASE_URL", FILE_URL)
    assert mintx.credentials().base_url_from == "$MINT_BASE_URL"


@pytest.mark.parametrize(("key", "shown"), [("sk-short", "sk-…"), ("odd", "…"), ("tml-" + "x" * 20, "tml-…xxxx")])
def test_redaction(key: str, shown: str) -> None:
    assert f"api_key={shown!r}" in repr(discovery.resolve("http://h", key))
