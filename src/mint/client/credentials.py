"""The credentials file: how the clients of a user find the servers that the same user runs here.

`mint serve` remembers itself in `~/.mint/credentials.json` (`MINT_CREDENTIALS` names another file) and
forgets itself when it stops. The file holds live keys, so only its owner may read it, and a file that others
can read or that belongs to another user is not believed. Pure standard library: both the server's command
line and the clients import this. Must not know the SDK, the server or the environment variables of clients.

    {"version": 1, "servers": {"http://127.0.0.1:8000": {"base_url": …, "api_key": "sk-…", "pid": …,
     "started_at": …, "data_dir": …, "process_birth": …}}}
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

VERSION = 1

_DEFAULT_PORTS = {"http": 80, "https": 443}


class CredentialsWarning(UserWarning):
    """The credentials file, or an entry of it, was ignored; the message says why."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that this user runs on this machine."""

    base_url: str
    api_key: str = field(repr=False)
    data_dir: str = ""
    pid: int = field(default_factory=os.getpid)
    started_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    process_birth: int | None = None
    """When the process `pid` began, in the kernel's own count: tells it from a later one with the same pid.
    Filled by `remember`; None where the kernel does not say."""


def path() -> Path:
    """Where the file is: `$MINT_CREDENTIALS`, else `~/.mint/credentials.json`."""
    return Path(os.environ.get("MINT_CREDENTIALS") or _default_path()).expanduser()


def read(file: Path | None = None) -> list[LocalServer]:
    """The servers that are running now, newest first; `file` is `path()` unless given.

    A file that cannot be trusted warns and counts as empty.
    """
    return sorted(filter(_is_alive, _load(file or path()).values()), key=lambda server: server.started_at, reverse=True)


def newest(file: Path | None = None) -> LocalServer | None:
    """The running server that was started last."""
    return next(iter(read(file)), None)


def remember(server: LocalServer) -> None:
    """Write the server down, in place of an earlier one at its base URL; drops those that no longer run.

    Raises OSError where the file cannot be written.
    """
    url = canonical_url(server.base_url)
    with _locked():
        servers = {server.base_url: server for server in read()}
        servers[url] = replace(server, base_url=url, process_birth=_process_birth(server.pid))
        _save(servers)


def forget(base_url: str, pid: int) -> None:
    """Remove the server of this process at this base URL; one that took its place since then stays.

    Raises OSError where the file cannot be written.
    """
    url = canonical_url(base_url)
    with _locked():
        servers = _load(path())
        if url in servers and servers[url].pid == pid:
            del servers[url]
            _save(servers)


def canonical_url(base_url: str) -> str:
    """One spelling per address: lower-case scheme and host, no default port, no trailing slash.

    Nothing is looked up: `localhost` and `127.0.0.1` stay two addresses.
    """
    try:
        parts = urlsplit(base_url)
    except ValueError:  # not an address: whoever uses it will say so
        return base_url
    userinfo, at, host = parts.netloc.rpartition("@")
    host = host.lower().removesuffix(f":{_DEFAULT_PORTS.get(parts.scheme, '')}")
    return urlunsplit(parts._replace(netloc=userinfo + at + host)).rstrip("/")


def _default_path() -> Path:
    return Path.home() / ".mint" / "credentials.json"


# ---------------------------------------------------------------- reading


def _load(file: Path) -> dict[str, LocalServer]:
    """The file's entries by base URL, running or not."""
    if os.name != "posix":
        return {}  # clients work on Windows; servers, and owners of files as below, are a Unix matter
    try:
        entries = _entries(_read_private(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _ignore(f"{file}: {error}")
        return {}
    servers = filter(None, (_parse(entry, file) for entry in entries))
    return {server.base_url: server for server in servers}


def _read_private(file: Path) -> str:
    """The file's text, if nobody but this user could have written or read it."""
    # Non-blocking, so that a pipe in the file's place does not hang the client. The checks ask the open
    # file, not the path: the path may name another file a moment later.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, encoding="utf-8") as stream:  # noqa: PTH123  # opens a descriptor, not a path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_uid != os.geteuid():
            raise ValueError(f"belongs to another user (uid {status.st_uid})")
        if mode := stat.S_IMODE(status.st_mode) & 0o077:
            raise ValueError(f"others have access to it (mode bits {mode:03o}); run chmod 600 on it")
        return stream.read()


def _entries(text: str) -> list[object]:
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("servers"), dict):
        raise ValueError("not a credentials file of MinT")  # noqa: TRY004  # one kind of error for all content
    if content.get("version") != VERSION:
        raise ValueError(f"its version is {content.get('version')!r}, this MinT reads {VERSION}")
    return list(content["servers"].values())


def _parse(entry: Any, file: Path) -> LocalServer | None:
    """One entry; a malformed one is ignored with a warning. Fields of a later MinT are passed over."""
    try:
        known = {each.name: entry[each.name] for each in fields(LocalServer) if each.name in entry}
        server = LocalServer(**known)
        _check(server)
    except (TypeError, ValueError) as error:
        _ignore(f"{file}: an entry is malformed ({error})")
        return None
    return replace(server, base_url=canonical_url(server.base_url))


def _check(server: LocalServer) -> None:
    if not all(isinstance(text, str) for text in (server.base_url, server.api_key, server.data_dir)):
        raise ValueError("base_url, api_key and data_dir must be text")
    if not server.base_url or not server.api_key:
        raise ValueError("base_url and api_key must not be empty")
    if type(server.pid) is not int or server.pid <= 0:
        raise ValueError("pid must be a positive whole number")
    if type(server.started_at) not in (int, float):
        raise ValueError("started_at must be a number")


def _ignore(reason: str) -> None:
    warnings.warn(f"ignored: {reason}", CredentialsWarning, stacklevel=2)


# ---------------------------------------------------------------- processes


def _is_alive(server: LocalServer) -> bool:
    try:
        os.kill(server.pid, 0)
    except (OSError, OverflowError):
        # Not permitted means another user's process: the number was given again, our server is gone.
        return False
    births = (server.process_birth, _process_birth(server.pid))
    return None in births or births[0] == births[1]


def _process_birth(pid: int) -> int | None:
    """The kernel's start time of a process, in ticks since boot (Linux)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(status.rpartition(")")[2].split()[19])  # field 22; the name in () may hold anything
    except (OSError, ValueError, IndexError):
        return None


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep other writers out while the file is read, changed and written. Readers need no lock."""
    import fcntl  # noqa: PLC0415  # there is none on Windows

    file = path()
    _make_private_folder(file.parent)
    lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _make_private_folder(folder: Path) -> None:
    # A folder that was there before and is not ours by name (`MINT_CREDENTIALS=/tmp/x.json`) stays as it is.
    is_ours = not folder.exists() or folder == _default_path().parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_ours:
        folder.chmod(0o700)


def _save(servers: dict[str, LocalServer]) -> None:
    """Replace the file in one step: a reader sees the old one or the new one, a crash leaves the old one."""
    file = path()
    content = {"version": VERSION, "servers": {url: asdict(server) for url, server in servers.items()}}
    # mkstemp creates with mode 600, so the keys are never readable by others, not even for a moment.
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123  # opens a descriptor, not a path
            json.dump(content, stream, indent=2)
            stream.flush()
            os.fsync(descriptor)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
