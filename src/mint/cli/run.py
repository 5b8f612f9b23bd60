"""`mint run`: a program against a server that lives as long as the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from mint.client import credentials

OVERRIDDEN = ("TINKER_BASE_URL", "TINKER_API_KEY", "TINKER_CREDENTIAL_CMD")


def run(
    program: Annotated[Path, typer.Argument(help="A Python program that uses mint or tinker.", exists=True)],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="As for `mint serve`.")] = None,
) -> None:
    """Start a server on loopback, run a program against it, stop the server."""
    with TemporaryDirectory(prefix="mint-run-") as name:
        folder = Path(name)
        os.environ["MINT_CREDENTIALS"] = str(folder / "credentials.json")
        command = [sys.executable, "-m", "mint.cli", "serve", "--port", "0", "--data-dir", str(folder / "data")]
        for entry in model or ():
            command += ["--model", entry]
        # a session of its own: Ctrl-C is for the program, and the server is stopped after it
        server = subprocess.Popen(command, start_new_session=True)
        try:
            code = _run_against(_await_server(server), [sys.executable, str(program), *(arguments or ())])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    raise typer.Exit(code)


def _await_server(server: subprocess.Popen[bytes]) -> credentials.LocalServer:
    """The server's address and key, which it writes down once it is ready."""
    while (found := credentials.newest()) is None:
        if server.poll() is not None:
            raise typer.Exit(server.returncode or 1)  # it has said why
        time.sleep(0.05)
    return found


def _run_against(server: credentials.LocalServer, command: list[str]) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in OVERRIDDEN}
    environment |= {"MINT_BASE_URL": server.base_url, "MINT_API_KEY": server.api_key}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
