"""The official SDK through a reverse proxy that serves the application under a prefix of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

import mint
from mint import types

from .inprocess import ALICE, MODEL, Serve, World, listening, play
from .sdk import SECONDS, datum

PREFIX = "/services/train"
HOPS = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive"}


@asynccontextmanager
async def proxied(world: World) -> AsyncIterator[str]:
    """The address of a proxy that takes the prefix off, passes on what is below it and has nothing else."""
    async with listening(world) as behind, httpx.AsyncClient(base_url=behind, timeout=SECONDS) as http:

        async def proxy(scope: Any, receive: Any, send: Any) -> None:
            body, more = b"", True
            while more:
                event = await receive()
                body, more = body + event.get("body", b""), event.get("more_body", False)
            answer = await _pass_on(http, scope, body)
            headers = [(name, value) for name, value in answer.headers.raw if name.decode().lower() not in HOPS]
            length = (b"content-length", str(len(answer.content)).encode())
            await send({"type": "http.response.start", "status": answer.status_code, "headers": [*headers, length]})
            await send({"type": "http.response.body", "body": answer.content})

        server = uvicorn.Server(uvicorn.Config(proxy, port=0, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}{PREFIX}"
        server.should_exit = True
        await serving


async def _pass_on(http: httpx.AsyncClient, scope: Any, body: bytes) -> httpx.Response:
    if not scope["path"].startswith(f"{PREFIX}/"):
        return httpx.Response(404, text="outside the prefix")
    query = scope["query_string"].decode()
    path = scope["raw_path"].decode().partition("?")[0].removeprefix(PREFIX)
    sent = {name.decode(): value.decode() for name, value in scope["headers"]}
    headers = {name: value for name, value in sent.items() if name.lower() not in HOPS - {"host", "content-encoding"}}
    headers |= {"X-Forwarded-Proto": "http", "X-Forwarded-Prefix": PREFIX}
    return await http.request(scope["method"], f"{path}?{query}" if query else path, content=body, headers=headers)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


def test_everything_the_sdk_does_goes_through_the_prefix(serve: Serve) -> None:
    def programs(url: str) -> str:
        with mint.ServiceClient(base_url=url, api_key=ALICE) as service:
            run = service.create_lora_training_client(MODEL, 4).result(SECONDS)
            # large enough to go out compressed, and over again where it is passed on
            passed = run.forward_backward([datum([5, 6, 7] * 10) for _ in range(40)], "cross_entropy")
            assert passed.result(SECONDS).metrics["loss:sum"] > 0
            run.optim_step(types.AdamParams(learning_rate=0.1)).result(SECONDS)
            path = run.save_state("a").result(SECONDS).path
            sampler = run.save_weights_and_get_sampling_client().result(SECONDS)
            prompt, settings = types.ModelInput.from_ints([5, 6]), types.SamplingParams(max_tokens=2)
            assert len(sampler.sample(prompt, 2, settings).result(SECONDS).sequences) == 2
        rest = mint.RestClient(base_url=url, api_key=ALICE)
        assert [each.tinker_path for each in rest.list_user_checkpoints().result(SECONDS).checkpoints] == [path]
        rest.publish_checkpoint_from_tinker_path(path).result(SECONDS)
        rest.delete_checkpoint_from_tinker_path(path).result(SECONDS)
        with pytest.raises(mint.NotFoundError):
            rest.get_weights_info_by_tinker_path(path).result(SECONDS)
        return path

    async def scene() -> None:
        async with serve() as world, proxied(world) as url:
            path = await asyncio.to_thread(programs, url)
            assert path.startswith("tinker://session-")

    play(scene)


def test_nothing_is_outside_the_prefix(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world, proxied(world) as url, httpx.AsyncClient() as http:
            assert (await http.get(f"{url}/healthz")).status_code == 200
            assert (await http.get(f"{url.removesuffix(PREFIX)}/healthz")).status_code == 404

    play(scene)
