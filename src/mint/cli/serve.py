"""`mint serve`: check, start, say how to reach it, stop cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.text import Text

from mint.cli.holding import Held, held
from mint.cli.options import CheckpointStoreUrl, DatabaseUrl
from mint.config import (
    DEFAULT_DATA_DIR,
    DEFAULT_PORT,
    Device,
    DType,
    Durability,
    EngineConfig,
    ModelSource,
    ServerConfig,
)
from mint.errors import MintError
from mint.observability.logs import LogFormat, configure
from mint.openpi import OPENPI_FAST_MODEL
from mint.tiny import NAME, model_path
from mint.tiny_vla import NAME as TINY_VLA
from mint.tiny_vla import model_path as policy_path

if TYPE_CHECKING:
    from fastapi import FastAPI

LOCATIONS = {
    NAME: str(model_path()),
    TINY_VLA: str(policy_path(16)),
    f"{TINY_VLA}-256": str(policy_path(256)),
    OPENPI_FAST_MODEL: "lerobot/pi0fast-base",
}
"""Where models lie that are built in, or are not called as on the hub."""

console = Console(stderr=True, highlight=False, soft_wrap=True)


class LogLevel(StrEnum):
    """Of the standard library's levels, those that are of use."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(  # noqa: PLR0913, PLR0917  # the options of a command
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)] = DEFAULT_PORT,
    data_dir: Annotated[Path, typer.Option(help="Database and checkpoints.")] = DEFAULT_DATA_DIR,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"NAME or NAME=PATH: a Hugging Face name, a folder or a built-in one; repeatable. None means {NAME}."
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that clients may use; repeatable. One is made on loopback."),
    ] = None,
    max_batch_tokens: Annotated[
        int, typer.Option(help="Tokens computed at a time; bounds the memory of a training pass.", min=1)
    ] = EngineConfig.max_batch_tokens,
    max_lora_rank: Annotated[
        int, typer.Option(help="Largest rank that a run may have.", min=1)
    ] = EngineConfig.max_lora_rank,
    max_resident_runs: Annotated[
        int, typer.Option(help="Runs in the device's memory; others wait on disk.", min=1)
    ] = EngineConfig.max_resident_runs,
    kv_cache_gib: Annotated[
        float | None,
        typer.Option(
            help="Memory for samples, which bounds their length and number.",
            show_default="0.5, or one long sequence",
            min=0.001,
            max=1 << 20,
        ),
    ] = None,
    max_decode_batch: Annotated[
        int, typer.Option(help="Samples that may decode together.", min=1)
    ] = EngineConfig.max_decode_batch,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute layers twice to save memory.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Where base models live.")] = EngineConfig.device,
    dtype: Annotated[DType, typer.Option(help="Type of the base models' weights.")] = EngineConfig.dtype,
    snapshot_seconds: Annotated[
        float, typer.Option(help="Between snapshots of a run in training; recovery computes as much again.", min=0)
    ] = ServerConfig.snapshot_seconds,
    keep_answers_hours: Annotated[
        float, typer.Option(help="How long results can be asked for again.", min=0)
    ] = ServerConfig.answers_kept_seconds / 3600,
    keep_sessions_days: Annotated[
        float, typer.Option(help="How long a client may be silent and find its runs.", min=0)
    ] = ServerConfig.sessions_kept_seconds / 86400,
    database_url: DatabaseUrl = None,
    durability: Annotated[
        Durability, typer.Option(help="What acknowledged work survives: the death of any process, or a loss of power.")
    ] = ServerConfig.durability,
    checkpoint_store: CheckpointStoreUrl = None,
    checkpoint_cache_gib: Annotated[
        float, typer.Option(help="Of such checkpoints, what is kept on this disk as well.", min=0.0, max=1 << 20)
    ] = ServerConfig.checkpoint_cache_bytes / (1 << 30),
    jwt_auth: Annotated[
        bool, typer.Option("--jwt-auth", help="Have clients exchange their keys for tokens that live for an hour.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged.")] = LogLevel.WARNING,
    log_format: Annotated[LogFormat, typer.Option(help="Lines for people, or JSON.")] = LogFormat.TEXT,
) -> None:
    """Serve base models: train and sample LoRA adapters on them over HTTP."""
    console.quiet = quiet
    configure(log_level.upper(), log_format)
    folder = data_dir.expanduser().resolve()
    config = ServerConfig(
        data_dir=folder,
        models=tuple(map(model_source, model or [NAME])),
        api_keys=tuple(api_key or ()),
        jwt_auth=jwt_auth,
        database_url=database_url,
        durability=durability,
        checkpoint_store=checkpoint_store,
        checkpoint_cache_bytes=int(checkpoint_cache_gib * (1 << 30)),
        host=host,
        port=port,
        snapshot_seconds=snapshot_seconds,
        answers_kept_seconds=keep_answers_hours * 3600,
        sessions_kept_seconds=keep_sessions_days * 86400,
        engine=EngineConfig(
            max_batch_tokens=max_batch_tokens,
            max_lora_rank=max_lora_rank,
            max_resident_runs=max_resident_runs,
            kv_cache_bytes=int(kv_cache_gib * (1 << 30)) if kv_cache_gib is not None else None,
            max_decode_batch=max_decode_batch,
            scratch_dir=folder / "scratch",
            gradient_checkpointing=gradient_checkpointing,
            device=device,
            dtype=dtype,
        ),
    )
    _serve(config)


def _serve(config: ServerConfig) -> None:
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        with held(config) as mine, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(mine))
    except (OSError, SQLAlchemyError, MintError) as error:
        _stop(str(getattr(error, "orig", None) or error))
    except SystemExit:
        _stop("did not start; the log above says why")  # uvicorn's way to say that the application did not


def _stop(message: str) -> NoReturn:
    console.quiet = False
    console.print("[red]mint serve:[/red]", Text(message))
    raise typer.Exit(1)


def model_source(entry: str) -> ModelSource:
    """`NAME` is its own location, but for those of `LOCATIONS`; `NAME=PATH` gives another, or such a name again."""
    name, separator, location = entry.partition("=")
    wanted = location if separator else name
    return ModelSource(name, LOCATIONS.get(wanted, wanted))


async def _run(mine: Held) -> None:
    """Serve until a signal.

    Raises:
        MintError: a model does not load.
        SystemExit: the application does not start.
    """
    from mint.server.app import create_app  # noqa: PLC0415
    from mint.server.http import HttpServer  # noqa: PLC0415

    started, config = perf_counter(), mine.config
    app = create_app(config, mine.database)
    server = HttpServer(app)
    mine.database.on_taken = partial(setattr, server, "should_exit", True)
    # uvicorn repeats the signal that it was stopped by to whoever handled it before
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    serving = asyncio.create_task(server.serve(sockets=[mine.listener]))
    try:
        with console.status(f"loading {', '.join(source.name for source in config.models)} …"):
            ready = await _startup(app, serving)
        if ready:
            _announce(config, perf_counter() - started)
        await serving
    finally:
        _forget(config)
        server.should_exit = True
        await serving
    console.print("mint serve: stopped; runs and checkpoints are kept in", Text(str(config.data_dir)))


async def _startup(app: FastAPI, serving: asyncio.Task[None]) -> bool:
    """Wait until the models are loaded; False if the server is told to stop before.

    Raises:
        MintError: a model does not load.
    """
    while not hasattr(app.state, "startup"):
        if serving.done():
            return False
        await asyncio.sleep(0.01)
    startup: asyncio.Task[None] = app.state.startup
    await asyncio.wait({startup, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not startup.done() or startup.cancelled():
        return False
    startup.result()
    return True


def _announce(config: ServerConfig, seconds: float) -> None:
    """What is served and what a client needs; with a key made here, clients of this user find it by themselves."""
    from mint.client import credentials  # noqa: PLC0415

    url = _url(config)
    console.print(f"MinT serves {', '.join(s.name for s in config.models)} at {url} (ready in {seconds:.1f} s)")
    console.print(f"data in {config.data_dir}; stop with Ctrl-C")
    if not config.admin_keys:
        console.print(
            f"\n  export MINT_BASE_URL={url}\n  export MINT_API_KEY=…      # one of the keys you gave or made"
        )
        return
    key = config.admin_keys[0]
    try:
        credentials.remember(credentials.LocalServer(url, key, data_dir=str(config.data_dir)))
        console.print("`import mint` programs of this user find it by themselves; for others:\n")
    except OSError as error:
        console.print(f"the credentials file could not be written ({error}), so programs need to be told:\n")
    console.print(f"  export MINT_BASE_URL={url}")
    console.print(f"  export MINT_API_KEY={key}")
    console.print("\nor, for programs that `import tinker`:\n")
    console.print(f"  export TINKER_BASE_URL={url}")
    console.print(f"  export TINKER_API_KEY=tml-{key.removeprefix('sk-')}")


def _forget(config: ServerConfig) -> None:
    from mint.client import credentials  # noqa: PLC0415

    with suppress(OSError):  # an entry of a process that has ended is not used
        credentials.forget(_url(config), os.getpid())


def _url(config: ServerConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}"
