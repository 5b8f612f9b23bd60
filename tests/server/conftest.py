"""Fixtures of the server's tests: one live server for all that does not hurt it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import mint

from .inprocess import serve
from .live import ALICE, BOB, LiveServer, tiny_model
from .sdk import SECONDS

__all__ = ["serve"]


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("live")
    server = LiveServer(folder, "--model", tiny_model(folder)).start()
    yield server
    assert server.stop(signal.SIGINT) == 0, server.output
    assert "Traceback" not in server.output


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The built-in robot policy under the published name, and a random one, beside a text model."""
    from mint.openpi import OPENPI_FAST_MODEL
    from tests.policies.support import save_policy
    from tests.server.policies import SMALL

    folder = tmp_path_factory.mktemp("policies")
    models = [
        f"{OPENPI_FAST_MODEL}=openpi/pi0-fast-tiny-256",
        f"{SMALL}={save_policy(folder / 'small')}",
        tiny_model(folder),
    ]
    server = LiveServer(folder, *(part for model in models for part in ("--model", model))).start()
    yield server
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output


@contextmanager
def client_of(server: LiveServer, key: str) -> Iterator[mint.ServiceClient]:
    """A client that is closed in the end, or left: leaving its own `with` block, it may wait for ever."""
    service = mint.ServiceClient(base_url=server.url, api_key=key)
    try:
        yield service
    finally:
        with suppress(TimeoutError):
            service.close("success").result(SECONDS)


@pytest.fixture
def alice(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with client_of(live, ALICE) as service:
        yield service


@pytest.fixture
def bob(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with client_of(live, BOB) as service:
        yield service
