"""A PostgreSQL server of the tests' own, emptied for each test that asks for a database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

from mint.store.database import Database
from mint.store.schema import metadata

ABSENT = "PostgreSQL is not installed; on Debian: apt-get install postgresql"
OPTIONS = {"listen_addresses": "", "fsync": "off", "shared_buffers": "16MB", "max_connections": "40"}
START_SECONDS = 120


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, which Debian does not put on the path."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path is not None]
    return next(iter([*found, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]), None)


class Cluster:
    """A server on a socket in a folder of its own. It runs as another user where this one is root, whom it refuses."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="mint-postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        options = ["--no-sync", "--auth", "trust", "--username", "mint", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        made = self._run("initdb", "--pgdata", str(self._data), *options)
        assert made.wait(START_SECONDS) == 0, self._log
        self.start()
        self._create("shared")
        Database(self._url("shared")).close()

    def database(self) -> str:
        """The URL of a database that has its schema and no rows. It is the same one for every test: that is faster."""
        with psycopg.connect(f"host={self._folder} user=mint dbname=shared", autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            tables = ", ".join(f'"{name}"' for name in metadata.tables)
            connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")
        return self._url("shared")

    def empty_database(self) -> str:
        """The URL of a new database."""
        name = f"test{next(self._numbers)}"
        self._create(name)
        return self._url(name)

    def start(self) -> None:
        options = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
        socket = ["-c", f"unix_socket_directories={self._folder}"]
        self._process = self._run("postgres", "-D", str(self._data), *options, *socket)
        ready = [str(self._programs / "pg_isready"), "-q", "-t", "1", "-h", str(self._folder), "-U", "mint"]
        for _ in range(100 * START_SECONDS):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            assert self._process.poll() is None, self._log
        raise AssertionError(self._log)

    def stop(self) -> None:
        """At once, as after a crash: connections are cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_SECONDS)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> str:
        return (self._folder / "log").read_text()

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://mint@/{name}?host={self._folder}"

    def _create(self, name: str) -> None:
        with psycopg.connect(f"host={self._folder} user=mint dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(self._programs / program), *arguments]
        groups = {} if self._user is None else {"group": self._user, "extra_groups": []}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, user=self._user, **groups)


@contextmanager
def cluster() -> Iterator[Cluster | None]:
    """A running server; None, with a warning that pytest shows at its end, where there is none to run."""
    if (found := programs()) is None:
        warnings.warn(f"{ABSENT}: its tests are skipped", stacklevel=2)
        yield None
        return
    running = Cluster(found)
    try:
        yield running
    finally:
        running.close()
