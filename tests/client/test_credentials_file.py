"""The credentials file: who may read it, what is believed, what survives several writers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from mint.client import credentials
from mint.client.credentials import CredentialsWarning, LocalServer

from .conftest import SOURCES

URL = "http://127.0.0.1:8000"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def write_text(text: str) -> Path:
    file = credentials.path()
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o600)
    return file


def write_entries(*entries: object, version: object = 1) -> Path:
    return write_text(json.dumps({"version": version, "servers": {str(i): e for i, e in enumerate(entries)}}))


def entry(**changes: object) -> dict[str, object]:
    server = {"base_url": URL, "api_key": "sk-a", "pid": os.getpid(), "started_at": 1.0, "data_dir": ""}
    return {**server, **changes}


def test_a_server_is_read_back(home: Path, remember: Callable[..., LocalServer]) -> None:
    written = remember(URL, data_dir="/data")
    (found,) = credentials.read()
    assert (found.base_url, found.api_key, found.data_dir) == (URL, "sk-file-key", "/data")
    assert (found.pid, found.started_at) == (os.getpid(), written.started_at)
    assert credentials.newest() == found
    assert credentials.path() == home / ".mint" / "credentials.json"


def test_no_file_is_no_server() -> None:
    with warnings.catch_warnings(action="error"):
        assert credentials.read() == []
    assert credentials.newest() is None


def test_the_key_is_not_in_the_repr() -> None:
    assert "sk-secret" not in repr(LocalServer(URL, "sk-secret"))


def test_file_and_folder_are_private_whatever_the_umask(remember: Callable[..., LocalServer]) -> None:
    before = os.umask(0)
    try:
        remember(URL)
    finally:
        os.umask(before)
    assert mode(credentials.path()) == 0o600
    assert mode(credentials.path().parent) == 0o700
    assert all(mode(file) == 0o600 for file in credentials.path().parent.iterdir())


def test_a_loose_folder_of_ours_is_made_private(home: Path, remember: Callable[..., LocalServer]) -> None:
    (home / ".mint").mkdir(mode=0o755)
    remember(URL)
    assert mode(home / ".mint") == 0o700


def test_another_file_by_environment_leaves_its_folder_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch, remember: Callable[..., LocalServer]
) -> None:
    shared = home / "shared"
    shared.mkdir(mode=0o755)
    monkeypatch.setenv("MINT_CREDENTIALS", "~/shared/keys.json")
    remember(URL)
    assert mode(shared) == 0o755
    assert mode(shared / "keys.json") == 0o600
    assert len(credentials.read()) == 1


def test_newest_first(remember: Callable[..., LocalServer]) -> None:
    for port, started_at in ((1, 10.0), (2, 30.0), (3, 20.0)):
        remember(f"http://127.0.0.1:{port}", started_at=started_at)
    assert [server.started_at for server in credentials.read()] == [30.0, 20.0, 10.0]


def test_a_dead_server_is_skipped_and_dropped_at_the_next_write(remember: Callable[..., LocalServer]) -> None:
    remember(URL, pid=dead_pid(), started_at=2e9)
    assert credentials.read() == []
    remember("http://127.0.0.1:9000")
    assert URL not in credentials.path().read_text()
    assert len(credentials.read()) == 1


def test_a_later_process_with_the_same_pid_is_not_the_server() -> None:
    write_entries(entry(process_birth=1))
    assert credentials.read() == []


def test_another_users_process_is_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, signal: int) -> None:
        raise PermissionError

    write_entries(entry())
    monkeypatch.setattr(os, "kill", kill)
    assert credentials.read() == []


def test_without_proc_the_pid_alone_decides(
    monkeypatch: pytest.MonkeyPatch, remember: Callable[..., LocalServer]
) -> None:
    monkeypatch.setattr(credentials, "_process_birth", lambda pid: None)
    remember(URL)
    assert len(credentials.read()) == 1


def test_a_server_replaces_the_earlier_one_at_its_address(remember: Callable[..., LocalServer]) -> None:
    remember(URL, "sk-old")
    remember("HTTP://127.0.0.1:8000/", "sk-new")
    assert [server.api_key for server in credentials.read()] == ["sk-new"]


def test_forget(remember: Callable[..., LocalServer]) -> None:
    remember(URL)
    remember("http://127.0.0.1:9000")
    credentials.forget(URL, pid=os.getpid() + 1)  # an earlier server that stops after its successor began
    assert len(credentials.read()) == 2
    credentials.forget(URL + "/", pid=os.getpid())
    assert [server.base_url for server in credentials.read()] == ["http://127.0.0.1:9000"]
    credentials.forget(URL, pid=os.getpid())


def test_forget_without_a_file() -> None:
    credentials.forget(URL, pid=1)
    assert credentials.read() == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "not a credentials file"),
        ('{"version": 1}', "not a credentials file"),
        ('{"version": 2, "servers": {}}', "its version is 2"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_corrupt_file_is_ignored_with_the_reason_and_healed_by_the_next_write(
    text: str, reason: str, remember: Callable[..., LocalServer]
) -> None:
    write_text(text)
    with pytest.warns(CredentialsWarning, match=reason):
        assert credentials.read() == []
    with pytest.warns(CredentialsWarning):
        remember(URL)
    assert len(credentials.read()) == 1


def test_bytes_that_are_no_text() -> None:
    write_text("").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(CredentialsWarning, match="decode"):
        assert credentials.read() == []


@pytest.mark.parametrize(
    "bad",
    [
        "text",
        [],
        None,
        {},
        {"base_url": URL},
        entry(api_key=""),
        entry(api_key=7),
        entry(base_url=""),
        entry(base_url=None),
        entry(pid=0),
        entry(pid=-1),
        entry(pid=True),
        entry(pid="1"),
        entry(started_at="yesterday"),
        entry(data_dir=None),
    ],
)
def test_a_malformed_entry_is_ignored_and_the_others_stay(bad: object) -> None:
    write_entries(bad, entry(base_url="http://127.0.0.1:9000"))
    with pytest.warns(CredentialsWarning, match="malformed"):
        assert [server.base_url for server in credentials.read()] == ["http://127.0.0.1:9000"]


def test_fields_of_a_later_mint_and_impossible_pids_do_not_trouble() -> None:
    write_entries(entry(colour="green"), entry(base_url="http://127.0.0.1:9000", pid=2**70))
    with warnings.catch_warnings(action="error"):
        assert [server.base_url for server in credentials.read()] == [URL]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_file_that_others_have_access_to_is_ignored(bits: int, remember: Callable[..., LocalServer]) -> None:
    remember(URL)
    credentials.path().chmod(bits)
    with pytest.warns(CredentialsWarning, match="others have access"):
        assert credentials.read() == []


def test_a_file_of_another_user_is_ignored(
    monkeypatch: pytest.MonkeyPatch, remember: Callable[..., LocalServer]
) -> None:
    remember(URL)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(CredentialsWarning, match="another user"):
        assert credentials.read() == []


def test_something_else_in_the_files_place() -> None:
    file = credentials.path()
    file.mkdir(parents=True)
    with pytest.warns(CredentialsWarning):
        assert credentials.read() == []
    file.rmdir()
    os.mkfifo(file, 0o600)
    with pytest.warns(CredentialsWarning, match="not a regular file"):
        assert credentials.read() == []


def test_an_unreadable_home_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CREDENTIALS", "/dev/null/credentials.json")
    with pytest.warns(CredentialsWarning, match="Not a directory"):
        assert credentials.read() == []


def test_a_crash_while_writing_leaves_the_old_file(
    monkeypatch: pytest.MonkeyPatch, remember: Callable[..., LocalServer]
) -> None:
    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    remember(URL)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="disk full"):
            remember("http://127.0.0.1:9000")
    assert [server.base_url for server in credentials.read()] == [URL]
    assert {file.name for file in credentials.path().parent.iterdir()} == {
        "credentials.json",
        "credentials.json.lock",
    }


def test_many_processes_write_and_nothing_is_lost() -> None:
    program = (
        "import sys; from mint.client.credentials import LocalServer, remember\n"
        "for i in range(10): remember(LocalServer(f'http://h{sys.argv[1]}:{i}', 'sk', pid=int(sys.argv[2])))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    arguments = [[sys.executable, "-c", program, str(i), str(os.getpid())] for i in range(4)]
    children = [subprocess.Popen(command, env=environment) for command in arguments]
    while any(child.poll() is None for child in children):
        with warnings.catch_warnings(action="error", category=credentials.CredentialsWarning):
            credentials.read()  # never sees half a file
    assert [child.returncode for child in children] == [0] * 4
    assert len(credentials.read()) == 40


def test_many_threads_write_and_nothing_is_lost(remember: Callable[..., LocalServer]) -> None:
    threads = [threading.Thread(target=remember, args=(f"http://h:{port}",)) for port in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(credentials.read()) == 20


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000//", "http://127.0.0.1:8000"),
        ("HTTP://LocalHost:80/", "http://localhost"),
        ("https://h:443/Train/", "https://h/Train"),
        ("https://h:80", "https://h:80"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("http://127.0.0.1:8000@h", "http://127.0.0.1:8000@h"),
        ("http://[broken", "http://[broken"),
    ],
)
def test_canonical_url(spelling: str, canonical: str) -> None:
    assert credentials.canonical_url(spelling) == canonical
