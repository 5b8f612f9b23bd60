"""Checkpoints to a folder and from one: a tar archive over HTTP, unpacked and made while it is sent.

What is downloaded comes with its hashes and is compared with them. Knows the server's routes; needs neither the SDK nor
torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, TypeAlias
from urllib.parse import quote

import httpx

API = "/api/v1"
SCHEMES = ("tinker", "mint")
MANIFEST = "manifest.json"
UPLOADED = ("adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors")
"""Files of a checkpoint's folder that are sent; whatever else is in it stays where it is."""

PIECE = 1 << 20
TIMEOUT = httpx.Timeout(60, read=1800)
"""Seconds. After the last byte of an upload, the server checks every number of it."""
TRIES = 3

Advance: TypeAlias = Callable[[int, int | None], None]
"""Called with how many bytes have passed, and of how many, where that is known."""

PLAIN = {"Accept-Encoding": "identity"}
"""Weights hardly compress, and what is compressed on the way has no length."""


class DamagedDownloadError(OSError):
    """The files that came are not those that were saved; none of them was kept."""


@dataclass(frozen=True)
class Server:
    """Where to, with which key. `refuse` raises what this program makes of a refusal."""

    base_url: str
    api_key: str
    refuse: Callable[[httpx.Response], NoReturn]

    @contextmanager
    def connect(self) -> Iterator[httpx.Client]:
        """A client for requests below the server's address.

        Raises:
            ConnectionError: the server cannot be reached, or the connection broke.
        """
        try:
            with httpx.Client(base_url=self.base_url, headers={"X-API-Key": self.api_key}, timeout=TIMEOUT) as http:
                yield http
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ConnectionError(f"{self.base_url}: {error or type(error).__name__}") from error

    def check(self, answer: httpx.Response, expected: int) -> None:
        """See that an answer is none that refuses."""
        if answer.status_code != expected:
            answer.read()
            self.refuse(answer)


# --- download -----------------------------------------------------------------------------------------------


def download(server: Server, path: str, folder: Path, token: str | None, advance: Advance) -> None:
    """Download a checkpoint's files to a folder, which appears when all of them are there and are what was saved.

    Args:
        token: a weights access token, for a checkpoint that is another's.

    Raises:
        ValueError: `path` is none of a checkpoint.
        FileExistsError: the folder is there already, and not empty.
        DamagedDownloadError: the files are not what was saved.
        OSError: the disk refuses, or the connection broke.
    """
    route = _archive_route(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and is no empty folder")
    partial = folder.with_name(f".{folder.name}.{token_hex(4)}.partial")
    partial.mkdir(parents=True)
    try:
        with server.connect() as http:
            answer = http.get(route, headers={"X-Tinker-Weights-Access-Token": token} if token is not None else {})
            server.check(answer, 302)
            # not the link's own beginning: this client knows by itself how it reaches the server
            with http.stream("GET", API + answer.headers["location"].partition(API)[2], headers=PLAIN) as content:
                server.check(content, 200)
                _unpack(content, partial, advance)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _archive_route(path: str) -> str:
    scheme, _, place = path.partition("://")
    parts = [quote(part, safe="") for part in place.split("/")]
    if scheme not in SCHEMES or len(parts) != 3 or not all(parts):
        raise ValueError(f"{path!r} is no checkpoint; a path reads tinker://RUN/SEGMENT/NAME")
    return f"{API}/training_runs/{parts[0]}/checkpoints/{parts[1]}/{parts[2]}/archive"


def _unpack(content: httpx.Response, folder: Path, advance: Advance) -> None:
    """Write the files of an archive that is coming in, and compare them with its manifest, which is its last file."""
    digests: dict[str, str] = {}
    reader: Any = _Reader(content, advance)  # of a file, tarfile's streams use `read` alone
    try:
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            for member in tar:
                digests[member.name] = _write(tar, member, folder)
    except tarfile.TarError as error:
        raise DamagedDownloadError(f"the archive cannot be read: {error}") from error
    if MANIFEST not in digests:
        raise DamagedDownloadError("the archive ended before its manifest")
    del digests[MANIFEST]
    saved = {name: entry["sha256"] for name, entry in json.loads((folder / MANIFEST).read_text())["files"].items()}
    wrong = sorted(name for name in {*digests, *saved} if digests.get(name) != saved.get(name))
    if wrong:
        raise DamagedDownloadError(f"{', '.join(wrong)} did not come as saved; download again")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Write a file of an archive; returns the SHA-256 of it."""
    source = tar.extractfile(member) if member.isreg() else None
    if source is None or Path(member.name).name != member.name:
        raise DamagedDownloadError(f"{member.name!r} in the archive is no file of a checkpoint")
    digest = hashlib.sha256()
    with (folder / member.name).open("xb") as file:
        while piece := source.read(PIECE):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


class _Reader:
    """The body of a response as a file."""

    def __init__(self, content: httpx.Response, advance: Advance) -> None:
        self._pieces = content.iter_bytes(PIECE)
        self._rest = bytearray()
        self._done = 0
        length = content.headers.get("content-length")
        self._total = int(length) if length is not None else None
        self._advance = advance

    def read(self, size: int) -> bytes:
        """As a file's."""
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
            self._done += len(piece)
            self._advance(self._done, self._total)
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data


# --- upload -------------------------------------------------------------------------------------------------


def upload(server: Server, source: Path, fields: Mapping[str, str | int | None], advance: Advance) -> dict[str, Any]:
    """Upload a checkpoint: a folder with its files, or a tar archive of one. Returns the server's answer.

    A try that fails on the way is repeated, and makes no second checkpoint.

    Args:
        fields: of the form, beside the file; None is left out.

    Raises:
        FileNotFoundError: there is no such file, or no adapter in the folder.
        OSError: a file cannot be read, or the connection broke.
    """
    form = _Form(source, {name: str(value) for name, value in fields.items() if value is not None}, advance)
    headers = {**form.headers, "X-Idempotency-Key": token_hex(16)}
    with server.connect() as http:
        for left in reversed(range(TRIES)):
            try:
                answer = http.post(f"{API}/checkpoints/upload", content=form.pieces(), headers=headers)
            except httpx.TransportError:
                if not left:
                    raise
                continue
            if answer.status_code < 500 or not left:
                break
        server.check(answer, 200)
    return dict(answer.json())


class _Form:
    """A form with a file in it, which is read while it is sent."""

    def __init__(self, source: Path, fields: dict[str, str], advance: Advance) -> None:
        boundary = token_hex(16)
        begin = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        texts = "".join(f'{begin}{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
        self._head = f'{texts}{begin}file"; filename="checkpoint.tar"\r\n\r\n'.encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._archive = _Archive(source)
        self._advance = advance
        size = len(self._head) + self._archive.size + len(self._tail)
        self.headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}

    def pieces(self) -> Iterator[bytes]:
        """The body, from its beginning."""
        yield self._head
        done = 0
        for piece in self._archive.pieces():
            yield piece
            done += len(piece)
            self._advance(done, self._archive.size)
        yield self._tail


class _Archive:
    """A tar archive: a file that is one, or the files of a folder, put together while they are read."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._files = [source / name for name in UPLOADED if (source / name).is_file()] if source.is_dir() else []
        if source.is_dir() and len(self._files) < 2:
            raise FileNotFoundError(f"{source} has no {UPLOADED[0]} or no {UPLOADED[1]}")
        self._sizes = [file.stat().st_size for file in self._files]
        in_folder = sum(tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE for size in self._sizes)
        self.size = in_folder + 2 * tarfile.BLOCKSIZE if self._files else source.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        """Its bytes."""
        if not self._files:
            yield from _read(self._source)
            return
        for file, size in zip(self._files, self._sizes, strict=True):
            header = tarfile.TarInfo(file.name)
            header.size = size
            yield header.tobuf(tarfile.GNU_FORMAT)
            yield from _read(file)
            yield bytes(-size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
