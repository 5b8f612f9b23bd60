"""`mint run`: a program against a server that lives as long as the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from mint.cli.private_server import PrivateServer, ServerDidNotStartError, private_server

OVERRIDDEN = ("TINKER_BASE_URL", "TINKER_API_KEY", "TINKER_CREDENTIAL_CMD")


def run(
    program: Annotated[Path, typer.Argument(help="A Python program that uses mint or tinker.", exists=True)],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments, options included.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="As for `mint serve`; before the program.")] = None,
) -> None:
    """Start a server on loopback, run a program against it, stop the server."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    starting = console.status("starting a server …")
    try:
        starting.start()
        with private_server(model or ()) as server:
            starting.stop()
            console.print(f"a server for {program.name} at {server.base_url}")
            code = _run_against(server, [sys.executable, str(program), *(arguments or ())])
    except ServerDidNotStartError:
        raise typer.Exit(1) from None  # it has said why
    finally:
        starting.stop()
    raise typer.Exit(code)


def _leave(number: int, _frame: FrameType | None) -> None:
    """A signal ends this program as an exception would, so that the server is stopped too."""
    raise SystemExit(128 + number)


def _run_against(server: PrivateServer, command: list[str]) -> int:
    """The program's exit code. Ctrl-C reaches the program too, which is given the time to end in its own way."""
    environment = {name: value for name, value in os.environ.items() if name not in OVERRIDDEN}
    environment |= {"MINT_BASE_URL": server.base_url, "MINT_API_KEY": server.api_key}
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise
