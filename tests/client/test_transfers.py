"""Downloads and uploads against servers that fail in some way or other."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from mint.client.transfers import DamagedDownloadError, Server, download, upload

PATH = "tinker://run:train:0/weights/a"
FILES = {"a": b"first" * 1000, "b": b""}


class Refused(Exception):
    """What these tests make of a refusal."""


def refuse(answer: httpx.Response) -> Any:
    raise Refused(answer.status_code)


class Fake:
    """A server that answers what `answers` says, request by request; the last answer stands."""

    def __init__(self, *answers: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        seen, left = self.requests, list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append((self.path, dict(self.headers), body))
                (left.pop(0) if len(left) > 1 else left[0])(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.server = Server(f"http://127.0.0.1:{self.http.server_port}/base", "sk-key", refuse)


@pytest.fixture
def serving() -> Iterator[Callable[..., Fake]]:
    started: list[Fake] = []

    def start(*answers: Callable[[BaseHTTPRequestHandler], None]) -> Fake:
        started.append(Fake(*answers))
        return started[-1]

    yield start
    for fake in started:
        fake.http.shutdown()
        fake.http.server_close()


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()
    handler.close_connection = True


LINK = answer(302, Location="https://elsewhere/lost/api/v1/checkpoint_archives/c?expires=1&signature=2")


def packed(files: dict[str, bytes], manifest: dict[str, bytes] | None = None) -> bytes:
    """An archive; `manifest` is of what it says it has."""
    said = files if manifest is None else manifest
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in said.items()}
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, data in {**files, "manifest.json": json.dumps({"files": entries}).encode()}.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return written.getvalue()


def nothing(_done: int, _total: int | None) -> None:
    pass


def test_a_download_keeps_the_servers_own_path(serving: Callable[..., Fake], tmp_path: Path) -> None:
    fake, seen = serving(LINK, answer(200, packed(FILES))), []
    download(fake.server, PATH, tmp_path / "new" / "a", "tml-token", lambda *step: seen.append(step))
    assert {file.name: file.read_bytes() for file in (tmp_path / "new" / "a").iterdir() if len(file.name) == 1} == FILES
    (first, headers, _), (second, _, _) = fake.requests
    assert first == "/base/api/v1/training_runs/run%3Atrain%3A0/checkpoints/weights/a/archive"
    assert headers["X-Tinker-Weights-Access-Token"] == "tml-token"
    assert second == "/base/api/v1/checkpoint_archives/c?expires=1&signature=2"
    assert seen[-1] == (len(packed(FILES)),) * 2


def test_a_proxy_may_leave_out_how_long_it_is(serving: Callable[..., Fake], tmp_path: Path) -> None:
    def to_the_end(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(packed(FILES))

    fake, seen = serving(LINK, to_the_end), []
    download(fake.server, PATH, tmp_path / "a", None, lambda *step: seen.append(step))
    assert (tmp_path / "a" / "a").read_bytes() == FILES["a"]
    assert seen[-1] == (len(packed(FILES)), None)
    assert fake.requests[1][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (packed(FILES, {**FILES, "a": b"second"}), "a did not come as saved"),
        (packed(FILES, {**FILES, "c": b""}), "c did not come as saved"),
        (packed({"a": b"", "../b": b"x"}), "no file of a checkpoint"),
        (packed(FILES)[:1024], "cannot be read|before its manifest"),
        (b"", "cannot be read"),
        (b"x" * 2048, "cannot be read"),
    ],
)
def test_what_is_damaged_is_not_kept(serving: Callable[..., Fake], tmp_path: Path, archive: bytes, said: str) -> None:
    fake = serving(LINK, answer(200, archive))
    with pytest.raises(DamagedDownloadError, match=said):
        download(fake.server, PATH, tmp_path / "a", None, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off(serving: Callable[..., Fake], tmp_path: Path) -> None:
    body = packed(FILES)
    for last in (answer(200, body[:3000], **{"Content-Length": str(len(body))}), drop):
        with pytest.raises(ConnectionError):
            download(serving(LINK, last).server, PATH, tmp_path / "a", None, nothing)
    for refusing in ((answer(403, b"{}"),), (LINK, answer(404, b"{}"))):
        with pytest.raises(Refused):
            download(serving(*refusing).server, PATH, tmp_path / "a", None, nothing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["a", "tinker://run/a", "tinker://run/weights/", "file://run/weights/a", "tinker://a/b/c/d"]
)
def test_what_is_no_path(serving: Callable[..., Fake], tmp_path: Path, path: str) -> None:
    fake = serving(LINK)
    with pytest.raises(ValueError, match="is no checkpoint"):
        download(fake.server, path, tmp_path / "a", None, nothing)
    assert fake.requests == []


def test_an_upload_is_tried_again_as_the_same(serving: Callable[..., Fake], tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / name).write_bytes(name.encode() * 300)
    fake, seen = serving(answer(503), drop, answer(200, b'{"path": "p"}')), []
    fields = {"name": "n", "base_model": None, "ttl_seconds": 3600}
    assert upload(fake.server, tmp_path, fields, lambda *step: seen.append(step)) == {"path": "p"}
    assert [path for path, _, _ in fake.requests] == ["/base/api/v1/checkpoints/upload"] * 3
    assert len({headers["X-Idempotency-Key"] for _, headers, _ in fake.requests}) == 1
    bodies = {body for _, _, body in fake.requests}
    assert len(bodies) == 1
    (body,) = bodies
    assert body.count(b'name="ttl_seconds"\r\n\r\n3600') == 1
    assert b"base_model" not in body
    content = body.partition(b'filename="checkpoint.tar"\r\n\r\n')[2].rpartition(b"\r\n--")[0]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["adapter_config.json", "adapter_model.safetensors"]
    assert seen[-1] == (len(content),) * 2


def test_an_upload_gives_up(serving: Callable[..., Fake], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    for answers, error, count in (
        ((answer(400, b"{}"),), Refused, 1),
        ((answer(500, b"{}"),), Refused, 3),
        ((drop,), ConnectionError, 3),
    ):
        fake = serving(*answers)
        with pytest.raises(error):
            upload(fake.server, tmp_path / "a.tar", {}, nothing)
        assert len(fake.requests) == count
