"""Fixtures of the server's tests: one live server for all that does not hurt it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import mint

from .inprocess import serve
from .live import ALICE, BOB, LiveServer, tiny_model

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


@pytest.fixture
def alice(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with mint.ServiceClient(base_url=live.url, api_key=ALICE) as service:
        yield service


@pytest.fixture
def bob(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with mint.ServiceClient(base_url=live.url, api_key=BOB) as service:
        yield service
