"""`mint serve`: check, start, say how to reach it, stop cleanly."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mint.config import DEFAULT_DATA_DIR, DEFAULT_PORT, ModelSource, ServerConfig
from mint.tiny import NAME, model_path

if TYPE_CHECKING:
    from fastapi import FastAPI

console = Console(stderr=True, highlight=False, soft_wrap=True)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)
    ] = DEFAULT_PORT,
    data_dir: Annotated[Path, typer.Option(help="Database and checkpoints.")] = DEFAULT_DATA_DIR,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"NAME or NAME=PATH: a Hugging Face name or a local folder; repeatable. [default: {NAME}]"
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that clients may use; repeatable. One is made on loopback."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Serve base models: train and sample LoRA adapters on them over HTTP."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s")
    folder = data_dir.expanduser().resolve()
    keys = tuple(api_key or ())
    if not keys and not _is_loopback(host):
        _stop(f"{host} can be reached from other machines: give a key with --api-key, or listen on 127.0.0.1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        listener = _listen(host, port)
        keys = keys or (_local_key(folder),)
    except OSError as error:
        _stop(str(error))
    config = ServerConfig(
        data_dir=folder,
        models=_sources(model or [NAME]),
        api_keys=keys,
        host=host,
        port=listener.getsockname()[1],
    )
    raise typer.Exit(asyncio.run(_run(config, listener, made_key=not api_key)))


def _stop(message: str) -> None:
    console.print(f"[red]mint serve:[/red] {message}")
    raise typer.Exit(1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sources(names: list[str]) -> tuple[ModelSource, ...]:
    """`NAME` is its own location, but for the built-in model; `NAME=PATH` gives one."""
    sources = []
    for entry in names:
        name, separator, location = entry.partition("=")
        default = str(model_path()) if name == NAME else name
        sources.append(ModelSource(name, location if separator else default))
    return tuple(sources)


def _listen(host: str, port: int) -> socket.socket:
    """Bind at once, so that a taken port is told before a model is loaded.

    Raises:
        OSError: with a plain message.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # connections inherit it; without, an answer's body waits up to 40 ms for the client to acknowledge its headers
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another with --port"
        ) from None
    return listener


def _local_key(data_dir: Path) -> str:
    """The key made for this data folder, so that what it owns is still its owner's after a restart."""
    from mint.server.auth import generate_key  # noqa: PLC0415

    path = data_dir / "local_key"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(generate_key())
    return path.read_text().strip()


async def _run(config: ServerConfig, listener: socket.socket, *, made_key: bool) -> int:
    """Serve until a signal; the exit code."""
    import uvicorn  # noqa: PLC0415

    from mint.errors import MintError  # noqa: PLC0415
    from mint.server.app import create_app  # noqa: PLC0415

    started = perf_counter()
    app = create_app(config)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3)
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        with console.status(f"loading {', '.join(source.name for source in config.models)} …"):
            await _startup(app, serving)
        if not serving.done():
            _announce(config, perf_counter() - started, made_key=made_key)
        await serving
    except MintError as error:
        console.print(f"[red]mint serve:[/red] {error}")
        server.should_exit = True
        await serving
        return 1
    finally:
        _forget(config)
    console.print("mint serve: stopped; runs and checkpoints are kept in", str(config.data_dir))
    return 0


async def _startup(app: FastAPI, serving: asyncio.Task[None]) -> None:
    """Wait until the models are loaded or the server is told to stop.

    Raises:
        MintError: a model does not load.
    """
    while not hasattr(app.state, "startup"):
        if serving.done():
            return
        await asyncio.sleep(0.01)
    startup: asyncio.Task[None] = app.state.startup
    await asyncio.wait({startup, serving}, return_when=asyncio.FIRST_COMPLETED)
    if startup.done() and not startup.cancelled():
        startup.result()


def _announce(config: ServerConfig, seconds: float, *, made_key: bool) -> None:
    """What is served and what a client needs; with a key made here, clients of this user find it by themselves."""
    from mint.client import credentials  # noqa: PLC0415

    url = _url(config)
    console.print(
        f"MinT serves {', '.join(s.name for s in config.models)} at {url} (ready in {seconds:.1f} s)"
    )
    console.print(f"data in {config.data_dir}; stop with Ctrl-C")
    if not made_key:
        console.print(
            f"\n  export MINT_BASE_URL={url}\n  export MINT_API_KEY=…      # one of the keys you gave"
        )
        return
    key = config.api_keys[0]
    try:
        credentials.remember(credentials.LocalServer(url, key, data_dir=str(config.data_dir)))
        console.print("`import mint` programs of this user find it by themselves; for others:\n")
    except OSError as error:
        console.print(f"the credentials file could not be written ({error}), so programs need to be told:\n")
    console.print(f"  export MINT_BASE_URL={url}")
    console.print(f"  export MINT_API_KEY={key}")
    console.print(
        f"  # for the plain tinker SDK: TINKER_BASE_URL={url} TINKER_API_KEY=tml-{key.removeprefix('sk-')}"
    )


def _forget(config: ServerConfig) -> None:
    from mint.client import credentials  # noqa: PLC0415

    try:
        credentials.forget(_url(config), os.getpid())
    except OSError:
        pass  # an entry of a process that has ended is not used


def _url(config: ServerConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}"
