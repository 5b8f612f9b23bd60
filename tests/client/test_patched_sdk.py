"""The patched SDK against real (local) servers: what arrives where, and what is refused before it is sent."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import pickle
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import tinker
from tinker._client import AsyncTinker
from tinker.cli.auth_api import TinkerAuthApi
from tinker.lib import base_url as sdk_urls
from tinker.lib._auth_token_provider import ApiKeyAuthProvider

import mint
from mint.client import patches
from mint.client.credentials import LocalServer

from .conftest import FakeServer

Start = Callable[..., FakeServer]
Remember = Callable[..., LocalServer]


def ask(**arguments: str) -> None:
    """Send one request through a client that was built with these arguments."""
    mint.RestClient(**arguments).get_server_capabilities().result()


@pytest.fixture
def hosted(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """Stands in for the SDK's default address."""
    server = start_server()
    monkeypatch.setattr(sdk_urls, "DEFAULT_BASE_URL", server.url)
    return server


@pytest.fixture(autouse=True)
def quiet_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the real default address."""
    monkeypatch.setattr(sdk_urls, "DEFAULT_BASE_URL", "http://127.0.0.1:9")


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("use_pyqwest", [True, False])
@pytest.mark.parametrize("key", ["sk-secret", "tml-secret"])
def test_a_key_arrives_unchanged(start_server: Start, key: str, use_pyqwest: bool) -> None:
    server = start_server(use_pyqwest)
    ask(base_url=server.url, api_key=key)
    assert [path for path, _ in server.requests][-1] == "/api/v1/get_server_capabilities"
    assert server.keys == {key}


def test_a_key_provider_holds_the_key_only() -> None:
    provider = ApiKeyAuthProvider("sk-secret")
    assert provider.api_key == asyncio.run(provider.get_token()) == "sk-secret"
    assert "tml-" not in str(vars(provider))


@pytest.mark.parametrize("key", ["secret", "pk-secret", "SK-secret", " sk-secret"])
def test_another_prefix_is_refused_before_anything_is_sent(start_server: Start, key: str) -> None:
    server = start_server()
    with pytest.raises(tinker.TinkerError, match=r"'sk-'.*'tml-'") as caught:
        ask(base_url=server.url, api_key=key)
    assert key not in str(caught.value)
    assert server.requests == []


def test_jwt_keys_are_the_sdks_affair() -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 100}).encode()).decode().rstrip("=")
    assert ApiKeyAuthProvider(f"eyJ.{claims}.x").api_key == f"eyJ.{claims}.x"


# ---------------------------------------------------------------- where clients go


def test_environment_of_a_real_client(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    mint_server, tinker_server = start_server(), start_server()
    for name, server in (("MINT", mint_server), ("TINKER", tinker_server)):
        monkeypatch.setenv(f"{name}_BASE_URL", server.url)
        monkeypatch.setenv(f"{name}_API_KEY", f"tml-{name}")
    ask()
    assert (mint_server.keys, tinker_server.keys) == ({"tml-MINT"}, set())
    # Read at every construction, not once: the SDK shares connections between such clients.
    monkeypatch.setenv("MINT_BASE_URL", "")
    monkeypatch.setenv("MINT_API_KEY", "")
    ask()
    assert tinker_server.keys == {"tml-TINKER"}


def test_the_environment_is_left_as_it_was(start_server: Start, remember: Remember) -> None:
    before = dict(os.environ)
    server = start_server()
    remember(server.url)
    ask()
    assert dict(os.environ) == before


def test_a_running_server_is_found(start_server: Start, remember: Remember) -> None:
    server = start_server()
    remember(server.url, "sk-file")
    with mint.ServiceClient() as client:
        client.create_sampling_client(base_model="base").result()
    assert {"/api/v1/create_session", "/api/v1/create_sampling_session"} <= {path for path, _ in server.requests}
    assert server.keys == {"sk-file"}


def test_a_restarted_server_is_found_again(start_server: Start, remember: Remember) -> None:
    first, second = start_server(), start_server()
    remember(first.url, "sk-first", started_at=1.0)
    ask()
    remember(second.url, "sk-second", started_at=2.0)
    ask()
    assert (first.keys, second.keys) == ({"sk-first"}, {"sk-second"})


def test_low_level_client(start_server: Start, remember: Remember) -> None:
    async def capabilities(**arguments: str) -> None:
        async with AsyncTinker(**arguments) as client:
            await client.service.get_server_capabilities()

    mine, other = start_server(), start_server()
    remember(mine.url, "sk-file")
    asyncio.run(capabilities())
    assert mine.keys == {"sk-file"}
    with pytest.raises(tinker.TinkerError, match="mint serve"):
        asyncio.run(capabilities(base_url=other.url))
    asyncio.run(capabilities(base_url=other.url, api_key="sk-other"))
    assert other.keys == {"sk-other"}


def test_the_commands_of_the_sdk_agree_on_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://tinker")
    monkeypatch.setenv("MINT_BASE_URL", "http://mint/")
    assert TinkerAuthApi(httpx.Client()).base_url == "http://mint"
    assert TinkerAuthApi(httpx.Client(), base_url="http://argument").base_url == "http://argument"


# ---------------------------------------------------------------- keys stay at home


def test_a_key_of_the_file_goes_to_no_other_server(start_server: Start, hosted: FakeServer, remember: Remember) -> None:
    mine, other = start_server(), start_server()
    remember(mine.url, "sk-file")
    for address in (other.url, hosted.url):
        with pytest.raises(tinker.TinkerError, match="mint serve"):
            ask(base_url=address)
    assert mine.requests == other.requests == hosted.requests == []


def test_the_sdks_stored_key_does_not_replace_the_servers(start_server: Start, home: Path, remember: Remember) -> None:
    store_sdk_key(home, "tml-hosted-account")
    mine = start_server()
    remember(mine.url, "sk-file")
    ask()
    ask(base_url=mine.url)
    assert mine.keys == {"sk-file"}


def test_a_tinker_key_alone_goes_where_the_sdk_sends_it(
    start_server: Start, hosted: FakeServer, remember: Remember, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = start_server()
    remember(mine.url, "sk-file")
    monkeypatch.setenv("TINKER_API_KEY", "tml-hosted-account")
    ask()
    assert (mine.keys, hosted.keys) == (set(), {"tml-hosted-account"})


@pytest.mark.parametrize("source", ["argument", "environment", "stored", "explicit address"])
def test_a_mint_key_is_never_sent_to_the_hosted_service(
    source: str, hosted: FakeServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {}
    if source == "environment":
        monkeypatch.setenv("MINT_API_KEY", "sk-lost")
    elif source == "stored":
        store_sdk_key(home, "sk-lost")
    else:
        arguments = {"api_key": "sk-lost"}
    if source == "explicit address":
        arguments["base_url"] = f"{hosted.url}/services/other"
    with pytest.raises(tinker.TinkerError, match="MINT_BASE_URL"):
        ask(**arguments)
    assert hosted.requests == []


def store_sdk_key(home: Path, key: str) -> None:
    (home / ".tinker").mkdir()
    stored = {"version": 1, "default": "1", "keys": {"1": {"type": "manual", "key": key, "name": "n"}}}
    (home / ".tinker" / "credentials.json").write_text(json.dumps(stored))


# ---------------------------------------------------------------- no key, has a key


def test_no_key_says_what_to_do(hosted: FakeServer) -> None:
    for use in (mint.RestClient, mint.AdminClient, lambda: mint.ServiceClient().holder):
        with pytest.raises(tinker.TinkerError, match=r"(?s)`mint serve`.*MINT_BASE_URL and MINT_API_KEY"):
            use()
    assert hosted.requests == []


def test_a_command_alone_cannot_serve_a_server_that_wants_a_key(
    start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", "echo tml-from-command")
    with pytest.raises(tinker.TinkerError, match="mint serve"):
        ask(base_url=start_server().url)


def test_has_credentials(monkeypatch: pytest.MonkeyPatch, remember: Remember) -> None:
    assert not tinker.auth.tinker_has_credentials()
    monkeypatch.setenv("MINT_API_KEY", "sk-env")
    assert tinker.auth.tinker_has_credentials()
    assert tinker.auth.get_tinker_token() == "sk-env"
    monkeypatch.delenv("MINT_API_KEY")
    remember("http://127.0.0.1:8000", "sk-file")
    assert tinker.auth.tinker_has_credentials()
    assert tinker.auth.get_tinker_token() is None  # it could not say to which server the key may go


# ---------------------------------------------------------------- pickles


def test_a_pickled_client_works_where_mint_was_never_imported(
    start_server: Start, run_python: Callable[..., str], tmp_path: Path
) -> None:
    server = start_server()
    with mint.ServiceClient(base_url=server.url, api_key="sk-pickled") as client:
        sampler = client.create_sampling_client(base_model="base").result()
        (tmp_path / "sampler").write_bytes(pickle.dumps(sampler))
    load = "import pickle; client = pickle.load(open(sys.argv[1], 'rb'))"
    assert run_python(f"{load}\nprint(client.holder._api_key)", str(tmp_path / "sampler")) == "sk-pickled"


# ---------------------------------------------------------------- the SDK's layout


def test_every_part_of_the_sdk_that_is_patched_is_where_it_was() -> None:
    with warnings.catch_warnings(action="error", category=RuntimeWarning):
        patches.apply()


@pytest.mark.parametrize(
    "place",
    [
        "_client.AsyncTinker.__init__",
        "_client.resolve_auth_provider",
        "_client.resolve_base_url",
        "auth.resolve_auth_provider",
        "auth.tinker_has_credentials",
        "cli.auth_api.resolve_base_url",
        "lib._auth_token_provider.ApiKeyAuthProvider.__init__",
        "lib._auth_token_provider.ApiKeyAuthProvider.create_or_env",
        "lib._auth_token_provider.resolve_auth_provider",
        "lib.base_url.resolve_base_url",
        "lib.internal_client_holder.InternalClientHolder.__init__",
        "lib.internal_client_holder._SessionlessHolderCache.get_or_create",
        "lib.internal_client_holder.resolve_auth_provider",
        "lib.internal_client_holder.resolve_base_url",
        "lib.public_interfaces.sampling_client.SamplingClient.__reduce__",
    ],
)
def test_every_place_is_patched_once(place: str) -> None:
    patches.apply()
    found = locate(place)
    assert found._mint_wraps
    assert not hasattr(found._mint_wraps, "_mint_wraps")


def locate(place: str) -> object:
    """The object at a dotted path inside the SDK: modules first, then attributes."""
    module, _, name = place.rpartition(".")
    try:
        owner: object = importlib.import_module(f"tinker.{module}")
    except ModuleNotFoundError:
        owner = locate(module)
    return getattr(owner, name)


@pytest.mark.parametrize("module", ["lib._auth_token_provider", "lib.internal_client_holder"])
def test_the_message_is_replaced_wherever_it_was_imported(module: str) -> None:
    assert locate(f"{module}.MISSING_API_KEY_MESSAGE") == patches.NO_KEY_MESSAGE


def test_no_other_place_in_the_sdk_reads_the_two_variables() -> None:
    """Where they are read was looked up by hand; a place that is new must be looked at."""
    folder = Path(tinker.__file__).parent
    places = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        if not file.name.endswith("_test.py")
        and any(f'environ.get("TINKER_{name}"' in file.read_text() for name in ("API_KEY", "BASE_URL"))
    }
    assert places == {"lib/_auth_token_provider.py", "lib/base_url.py", "lib/internal_client_holder.py"}


def test_a_part_that_moved_is_named_and_the_rest_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sdk_urls, "resolve_base_url")
    with pytest.warns(RuntimeWarning, match=r"tinker 0\.\d+.*environment_of_base_url.*resolve_base_url"):
        patches.apply()
    assert ApiKeyAuthProvider("sk-still").api_key == "sk-still"
