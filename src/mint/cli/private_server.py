"""A server of one's own: started on a free port with data that go away with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mint.client import credentials

STORES = ("MINT_DATABASE_URL", "MINT_CHECKPOINT_STORE")
"""What is meant for a server that others use."""


@dataclass(frozen=True)
class PrivateServer:
    """A running server: where it is, its key, and its process."""

    base_url: str
    api_key: str
    process: subprocess.Popen[bytes]


class ServerDidNotStartError(RuntimeError):
    """`mint serve` ended before it was ready; it has said why on stderr."""


@contextmanager
def private_server(models: Sequence[str] = ()) -> Iterator[PrivateServer]:
    """`mint serve` for the length of a `with` block; models as for its `--model`.

    Raises:
        ServerDidNotStartError: a model was not found, or the like.
    """
    with TemporaryDirectory(prefix="mint-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "mint.cli", "serve", "--quiet", "--port", "0"]
        command += ["--data-dir", str(folder / "data")]
        for entry in models:
            command += ["--model", entry]
        file = folder / "credentials.json"
        # a session of its own: Ctrl-C is for the program that uses the server, which is stopped after it
        environment = {name: value for name, value in os.environ.items() if name not in STORES}
        environment["MINT_CREDENTIALS"] = str(file)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            found = _await_credentials(process, file)
            yield PrivateServer(found.base_url, found.api_key, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _await_credentials(process: subprocess.Popen[bytes], file: Path) -> credentials.LocalServer:
    """Address and key, which the server writes down once it is ready."""
    while not (file.exists() and (found := credentials.newest(file))):
        if process.poll() is not None:
            raise ServerDidNotStartError(f"mint serve ended with code {process.returncode}")
        time.sleep(0.02)
    return found
