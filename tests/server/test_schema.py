"""Whatever the OpenAPI document allows, and what it does not, is answered without an error of the server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from mint.config import EngineConfig, ModelSource, ServerConfig
from mint.dispatch import fleet
from mint.server.app import create_app
from mint.server.http import HttpServer

from .inprocess import ADMIN, MODEL, IdleWorker

EXAMPLES = 10
"""Of each kind for each of some forty routes. They are drawn anew each time: what one run misses another may find."""

SCHEMA = schemathesis.openapi.from_dict(create_app(ServerConfig(Path("/nowhere"), ())).openapi())
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over HTTP whose worker computes nothing."""

    async def start_worker(source: ModelSource, _config: EngineConfig) -> IdleWorker:
        return IdleWorker(source, paused=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet.LocalWorker, "start", start_worker)
        folder = tmp_path_factory.mktemp("schema")
        config = ServerConfig(folder, (ModelSource(MODEL, "/nowhere"),), admin_keys=(ADMIN,), long_poll_seconds=0.05)
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(create_app(config))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def has_input(label: str) -> bool:
    """Whether there is anything to get wrong; any text does for a path or a header."""
    raw = OPERATIONS[label].definition.raw
    return "requestBody" in raw or any(each["in"] not in ("path", "header") for each in raw.get("parameters", ()))


POSITIVE = [(label, GenerationMode.POSITIVE) for label in sorted(OPERATIONS)]
NEGATIVE = [(label, GenerationMode.NEGATIVE) for label in sorted(OPERATIONS) if has_input(label)]


@pytest.mark.parametrize(("label", "mode"), POSITIVE + NEGATIVE)
def test_no_request_is_a_server_error(label: str, mode: GenerationMode, url: str) -> None:
    # examples that are slow or too large to draw are of no interest: nothing here is about what is drawn
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        response = case.call(base_url=url, headers={"X-API-Key": ADMIN}, timeout=20)
        case.validate_response(response, checks=[not_a_server_error])
        if response.status_code >= 400:
            answer = response.json()
            assert isinstance(answer["error"]["message"] if "error" in answer else answer["detail"], str)

    check()
