"""Checkpoint folders in a store of objects, with a bounded cache beside the server.

The store gets a folder's files when it is committed, its manifest last: what has no manifest there is not whole, and is
swept like any folder without a row.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from mint.errors import MintError, NotFoundError
from mint.store import files
from mint.store.files import MANIFEST, STAGED, DamagedError, FileEntry
from mint.store.folders import DEPLOYMENT, CheckpointStore, LocalStore, refuse_others

logger = logging.getLogger(__name__)

FETCHING = ".fetching"
SCHEMES = ("s3", "gs", "az", "file")
RECENTLY_SECONDS = 600.0
"""A folder that was asked for so lately stays in the cache: whoever asked may not have opened it yet."""
PIECE = 8 << 20
FETCHES = 16
"""At most so many at once, and never two of one folder."""


class ObjectStore:
    """Folders in a store of objects, as `NAME/FILE` below a URL; those used last are also on the server's disk.

    Args:
        url: of S3 or what speaks its protocol, Google's, Azure's, or a folder. Credentials come from the environment.
        cache_bytes: local copies may take so much, and what is in use above that.
        retry: obstore's `retry_config`; None is its default of 10 tries within three minutes.

    Raises:
        MintError: it is no such URL.
    """

    def __init__(self, root: Path, url: str, cache_bytes: int, retry: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self._url = url
        self._cache_bytes = cache_bytes
        self._objects = _open(url, retry)
        self._fetching = [threading.Lock() for _ in range(FETCHES)]
        self._trimming = threading.Lock()

    def claim(self, deployment_id: str) -> None:
        """See `CheckpointStore`."""
        try:
            try:
                found = self._read(DEPLOYMENT).decode()
            except FileNotFoundError:
                with self._asking():
                    obstore.put(self._objects, DEPLOYMENT, deployment_id.encode())
                found = self._read(DEPLOYMENT).decode()
        except OSError as error:
            raise MintError(f"cannot be used: {error.strerror}", field="checkpoint_store") from error
        refuse_others(found, deployment_id, self._url, "--checkpoint-store")

    def commit(self, name: str) -> None:
        """See `CheckpointStore`."""
        staged = self.root / f"{name}{STAGED}"
        if self._is_whole(name):  # the last process was killed between this and the commit of the row
            files.remove(self.root, staged.name)
            self.fetch(name)
            return
        entries = files.write_manifest(staged)
        with self._asking():
            for file in (*entries, MANIFEST):
                obstore.put(self._objects, f"{name}/{file}", staged / file)
        os.utime(staged)  # the upload may have taken long, and whoever has saved it may read it now
        staged.rename(self.root / name)

    def check(self, name: str, path: str, field: str) -> None:
        """See `CheckpointStore`: what is not here is found out by `fetch`."""

    def is_gone(self, name: str) -> bool:
        """See `CheckpointStore`: `fetch` finds it out."""
        del name
        return False

    def is_here(self, name: str) -> bool:
        """See `CheckpointStore`."""
        folder = self.root / name
        try:
            files.check(folder, name, "path")
            os.utime(folder)
        except (MintError, OSError):  # it is not, or a crash has left a part of it
            return False
        return True

    def fetch(self, name: str) -> None:
        """See `CheckpointStore`."""
        with self._lock_of(name):
            if self.is_here(name):
                return
            partial = f"{name}{FETCHING}"
            for remains in (partial, name):
                files.remove(self.root, remains)
            try:
                self._download_all(name, self.root / partial)
                (self.root / partial).rename(self.root / name)
            except BaseException:
                files.remove(self.root, partial)
                raise

    def _lock_of(self, name: str) -> threading.Lock:
        """Who has it puts the folder here, or takes it away."""
        return self._fetching[hash(name) % FETCHES]

    def trim(self, kept: Collection[str]) -> None:
        """See `CheckpointStore`. What the store does not have, having been saved before there was one, stays."""
        try:
            with self._trimming:
                self._trim(kept)
        except OSError as error:
            logger.warning("local copies take more than they may: %s", error)

    def _trim(self, kept: Collection[str]) -> None:
        folders = sorted(self._copies())
        excess = sum(size for _, _, size in folders) - self._cache_bytes
        for used_at, name, size in folders:
            if excess <= 0:
                break
            if name not in kept and not _is_recent(used_at) and self._is_whole(name) and self._drop(name):
                excess -= size

    def _drop(self, name: str) -> bool:
        """Delete a local copy, unless it was asked for meanwhile: the store may take long to answer."""
        with self._lock_of(name):
            if _is_recent((self.root / name).stat().st_mtime):
                return False
            # gone at once under its name, so that nobody comes upon a half of it
            (self.root / name).rename(self.root / f"{name}{STAGED}")
        files.remove(self.root, f"{name}{STAGED}")
        return True

    def remove(self, name: str) -> None:
        """See `CheckpointStore`. The manifest goes first: what is left of a folder then is not whole."""
        files.remove(self.root, name)
        with self._asking():
            paths = [found["path"] for page in obstore.list(self._objects, f"{name}/") for found in page]
            for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST}")):
                obstore.delete(self._objects, path)

    def older_than(self, moment: float) -> Iterator[str]:
        """See `CheckpointStore`."""
        names = set(files.older_than(self.root, moment))
        written: dict[str, float] = {}
        with self._asking():
            for page in obstore.list(self._objects):
                for found in page:
                    name, is_file_of, _ = found["path"].partition("/")
                    if is_file_of:
                        written[name] = max(written.get(name, 0.0), found["last_modified"].timestamp())
        names.update(name for name, at in written.items() if at < moment)
        yield from names

    def _is_whole(self, name: str) -> bool:
        try:
            with self._asking():
                obstore.head(self._objects, f"{name}/{MANIFEST}")
        except FileNotFoundError:
            return False
        return True

    def _read(self, path: str) -> bytes:
        with self._asking():
            return bytes(obstore.get(self._objects, path).bytes())

    def _download_all(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        try:
            (folder / MANIFEST).write_bytes(self._read(f"{name}/{MANIFEST}"))
            for file, entry in files.read_manifest(folder).items():
                self._download(f"{name}/{file}", folder / file, entry)
        except FileNotFoundError as error:
            raise NotFoundError(f"the files of checkpoint folder {name} are gone", field="path") from error

    def _download(self, path: str, target: Path, entry: FileEntry) -> None:
        digest = hashlib.sha256()
        with self._asking(), target.open("wb") as file:
            for piece in obstore.get(self._objects, path).stream(min_chunk_size=PIECE):
                digest.update(piece)
                file.write(piece)
            size = file.tell()
        if (size, digest.hexdigest()) != (entry.size, entry.sha256):
            raise DamagedError(f"{path} in {self._url} is not what was saved")
        files.sync(target)

    def _copies(self) -> Iterator[tuple[float, str, int]]:
        """Of each committed folder that is here: when it was used last, its name, its size in bytes."""
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.endswith((STAGED, FETCHING)):
                    sizes = (file.stat().st_size for file in Path(entry.path).iterdir())
                    yield entry.stat().st_mtime, entry.name, sum(sizes)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Errors of the store as `OSError`, which is what a disk's are."""
        try:
            yield
        except BaseError as error:
            reason = str(error).partition("\n")[0]
            raise OSError(errno.EIO, f"{self._url}: {reason}") from error


def _is_recent(used_at: float) -> bool:
    return used_at > time() - RECENTLY_SECONDS


def checkpoint_store(root: Path, url: str | None, cache_bytes: int) -> CheckpointStore:
    """The store that a configuration asks for."""
    return LocalStore(root) if url is None else ObjectStore(root, url, cache_bytes)


def _open(url: str, retry: Mapping[str, Any] | None) -> Any:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or not url.startswith(f"{scheme}://"):
        raise MintError(
            f"must begin with one of {', '.join(f'{name}://' for name in SCHEMES)}", field="checkpoint_store"
        )
    options: dict[str, Any] = {} if retry is None else {"retry_config": retry}
    if scheme == "file":
        options["mkdir"] = True
    else:
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
        options["client_options"] = {"allow_http": endpoint.startswith("http://")}
    try:
        return from_url(url, **options)
    except (BaseError, ValueError, OSError) as error:
        raise MintError(str(error).partition("\n")[0], field="checkpoint_store") from error
