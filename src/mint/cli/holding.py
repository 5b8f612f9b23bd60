"""What a server has for itself alone: its folder, its port, its database."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mint.config import ServerConfig
from mint.errors import MintError

if TYPE_CHECKING:
    from mint.store.database import Database


@dataclass(frozen=True)
class Held:
    """`config` has the port that was found and the key that was made; the database is closed by who serves with it."""

    config: ServerConfig
    listener: socket.socket
    database: Database


@contextmanager
def held(config: ServerConfig) -> Iterator[Held]:
    """Take hold of it, for the length of a `with` block. Whoever other machines can reach needs a key.

    Raises:
        OSError: the folder or the port is not to be had.
        SQLAlchemyError: the database is not.
        MintError: there is no key, or a setting does not fit.
    """
    from mint.server.app import open_database  # noqa: PLC0415
    from mint.server.auth import generate_key, given_key  # noqa: PLC0415
    from mint.store import keys  # noqa: PLC0415
    from mint.store.private import read_or_create  # noqa: PLC0415

    for key in config.api_keys:
        given_key(key)
    is_open, folder = is_loopback(config.host) or bool(config.api_keys), config.data_dir
    if not is_open and config.database_url is None and not (folder / "mint.db").exists():
        raise _no_key(config.host)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_lock(folder))
        listener = _listen(config.host, config.port)
        database = open_database(config)
        with ExitStack() as failed:
            failed.callback(database.close)
            if not is_open and not asyncio.run(database.transaction(keys.any_holds)):
                raise _no_key(config.host)
            # kept with the data, so that what it owns is still its owner's after a restart
            made = () if config.api_keys or not is_open else (read_or_create(folder / "local_key", generate_key),)
            failed.pop_all()
        yield Held(replace(config, port=listener.getsockname()[1], admin_keys=made), listener, database)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _no_key(host: str) -> MintError:
    return MintError(
        f"{host} can be reached from other machines: give a key with --api-key, make one with `mint keys create`, "
        "or listen on 127.0.0.1"
    )


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
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another with --port") from None
    return listener


def _lock(data_dir: Path) -> IO[str]:
    """Keep other servers off the folder: two would both carry out what is in its journal.

    Raises:
        OSError: another process has it.
    """
    file = (data_dir / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OSError(f"{data_dir} is in use by another `mint serve`; choose another with --data-dir") from None
    return file
