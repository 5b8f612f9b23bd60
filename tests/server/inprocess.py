"""The application in this process, over a worker that computes nothing: for what only the server decides."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from mint.config import EngineConfig, ModelSource, ServerConfig
from mint.dispatch import fleet
from mint.engine.core import Command, CreateRun, OnProgress, Result
from mint.server.app import create_app
from mint.server.services import Services
from mint.wire import messages_pb2 as pb
from tests.dispatch.fakes import INFO, FakeWorker, play  # noqa: F401  # for those who use this module

ALICE, BOB, ADMIN = "sk-alice-secret", "sk-bob-secret", "sk-admin-secret"
PROTOBUF = "application/x-protobuf"
MODEL = "base"


class IdleWorker(FakeWorker):
    """Does what it is told at once, unless it is paused."""

    def __init__(self, source: ModelSource, paused: bool) -> None:
        super().__init__(replace(INFO, name=source.name))
        self.paused = paused

    def execute(self, command: Command, on_progress: OnProgress | None = None) -> asyncio.Future[Result]:
        answer = super().execute(command, on_progress)
        if not self.paused:
            asyncio.get_running_loop().call_soon(self.work)
        return answer

    @property
    def alive(self) -> bool:
        return not self.died.is_set()

    def resume(self) -> None:
        self.paused = False
        while self.work():
            pass

    def times(self, *kinds: type[Command]) -> int:
        """How many commands of these kinds were executed."""
        return sum(isinstance(command, kinds) for command in self.executed)


@dataclass
class Api:
    """A client with one key."""

    http: httpx.AsyncClient
    key: str

    async def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        headers = {"X-API-Key": self.key, **request.pop("headers", {})}
        return await self.http.request(method, f"/api/v1/{path}", headers=headers, **request)

    async def post(self, path: str, body: Any = None, **request: Any) -> httpx.Response:
        return await self.send("POST", path, json=body if body is not None else {}, **request)

    async def ok(self, path: str, body: Any = None, **request: Any) -> Any:
        response = await self.post(path, body, **request)
        assert response.status_code == 200, response.text
        return response.json()

    async def session(self) -> str:
        return (await self.ok("create_session"))["session_id"]

    async def run(self, session: str | None = None, number: int = 0) -> str:
        """A new run that is ready."""
        session = session or await self.session()
        body = {"session_id": session, "model_seq_id": number, "base_model": MODEL, "lora_config": {"rank": 4}}
        answer = await self.result("create_model", body)
        assert answer == {"model_id": f"{session}:train:{number}", "type": "create_model"}, answer
        return f"{session}:train:{number}"

    async def sampler(self, session: str | None = None, number: int = 0, **source: str) -> str:
        source = source or {"base_model": MODEL}
        body = {"session_id": session or await self.session(), "sampling_session_seq_id": number, **source}
        return (await self.ok("create_sampling_session", body))["sampling_session_id"]

    async def result(self, path: str, body: Any = None, **request: Any) -> Any:
        """Submit and wait for the JSON result."""
        return await self.retrieve((await self.ok(path, body, **request))["request_id"])

    async def retrieve(self, request_id: str) -> Any:
        return await self.ok("retrieve_future", {"request_id": request_id})

    async def pass_(self, run: str, seq_id: int, *datums: pb.Datum, **fields: Any) -> httpx.Response:
        """Submit a forward_backward in protobuf."""
        message = pb.ForwardBackwardRequest(
            model_id=run,
            seq_id=seq_id,
            data=datums or [datum()],
            loss_fn=fields.pop("loss_fn", "cross_entropy"),
            **fields,
        )
        headers = {"Content-Type": PROTOBUF}
        return await self.send("POST", "forward_backward", content=message.SerializeToString(), headers=headers)

    async def step(self, run: str, seq_id: int) -> Any:
        return await self.result("optim_step", {"model_id": run, "seq_id": seq_id})


def datum(tokens: Iterable[int] = (5, 6, 7), targets: Iterable[int] = (6, 7, 8), **inputs: Iterable[float]) -> pb.Datum:
    import numpy as np

    message = pb.Datum()
    message.model_input.add().encoded_text.tokens = np.array(list(tokens), "<i4").tobytes()
    tensors = {"target_tokens": (list(targets), "<i8", pb.DTYPE_INT64)}
    tensors |= {name: (list(values), "<f4", pb.DTYPE_FLOAT32) for name, values in inputs.items()}
    for name, (values, dtype, wire) in tensors.items():
        message.loss_fn_inputs[name].CopyFrom(pb.Tensor(dense=np.array(values, dtype).tobytes(), dtype=wire))
    return message


@dataclass
class World:
    """A running application."""

    app: FastAPI
    workers: list[IdleWorker]
    alice: Api
    bob: Api
    admin: Api

    @property
    def worker(self) -> IdleWorker:
        return self.workers[-1]

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services


Serve = Callable[..., Any]

ON_BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
"""Of tests whose servers are to work on either database."""


@pytest.fixture
def serve(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """`async with serve() as world`: an application over a folder of its own, or over the one that is given.

    Its database is in that folder, unless the test is run `ON_BOTH`.
    """
    url = database_url if database_url.startswith("postgresql") else None

    @asynccontextmanager
    async def start(folder: Path = tmp_path / "data", paused: bool = False, **settings: Any) -> AsyncIterator[World]:
        workers: list[IdleWorker] = []

        async def start_worker(source: ModelSource, _config: EngineConfig) -> IdleWorker:
            workers.append(IdleWorker(source, paused))
            return workers[-1]

        monkeypatch.setattr(fleet.LocalWorker, "start", start_worker)
        # a gap is never given up here: what waits for one fails its test
        defaults = {
            "models": (ModelSource(MODEL, "/nowhere"),),
            "database_url": url,
            "gap_seconds": 3600.0,
            "long_poll_seconds": 20.0,
        }
        config = ServerConfig(
            **{"data_dir": folder, "api_keys": (ALICE, BOB), "admin_keys": (ADMIN,), **defaults, **settings}
        )
        app = create_app(config)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server", timeout=20) as http,
        ):
            yield World(app, workers, Api(http, ALICE), Api(http, BOB), Api(http, ADMIN))

    return start


@asynccontextmanager
async def listening(world: World, requests: Counter[str] | None = None) -> AsyncIterator[str]:
    """The address at which the application can be reached; requests are counted by path."""
    seen = requests if requests is not None else Counter()

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        seen[scope["path"].rpartition("/")[2]] += 1
        await world.app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(counting, port=0, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    await serving


def created(worker: IdleWorker) -> int:
    return worker.times(CreateRun)
