"""Checkpoint folders: committed by rename with a manifest, checked when they are read, deleted.

A folder `NAME.staged` is being written. `NAME` is whole: it has a manifest of its files with their sizes and hashes.
Its contents never change, and its name is never used for others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree

from mint.errors import GoneError, NotFoundError

MANIFEST = "manifest.json"
STAGED = ".staged"
PIECE = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint: its size in bytes and the SHA-256 of its contents, in hexadecimal."""

    size: int
    sha256: str


class DamagedError(GoneError):
    """A checkpoint's files are not those that were saved."""


def commit(root: Path, name: str) -> None:
    """Give a written folder its manifest and its final name, for good.

    Raises:
        OSError: the disk refuses; the folder stays staged.
    """
    final, staged = root / name, root / f"{name}{STAGED}"
    if final.exists():  # the last process was killed between this and the commit of the row
        rmtree(staged, ignore_errors=True)
    else:
        write_manifest(staged)
        staged.rename(final)
    sync(root)


def write_manifest(folder: Path) -> dict[str, FileEntry]:
    """Say, beside a folder's files, what they are; returns that."""
    entries = {path.name: _entry(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    document = {"files": {name: asdict(entry) for name, entry in entries.items()}}
    (folder / MANIFEST).write_text(json.dumps(document, indent=2) + "\n")
    sync(folder / MANIFEST)
    sync(folder)
    return entries


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(os.fstat(file.fileno()).st_size, digest.hexdigest())


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """The files that a folder was committed with, by name.

    Raises:
        DamagedError: the manifest is missing or is none.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return {name: FileEntry(**entry) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"the manifest of checkpoint folder {folder.name} cannot be read: {error!r}") from error


def manifest_entry(folder: Path) -> FileEntry:
    """Of the manifest itself."""
    return _entry(folder / MANIFEST)


def check(folder: Path, path: str, field: str) -> None:
    """See that a checkpoint's files are there, each of its size. Hashes are not computed: that takes as long as a load.

    Raises:
        NotFoundError: naming `field`; the folder is gone.
        DamagedError: a file is missing or has another size.
    """
    if not folder.is_dir():
        raise NotFoundError(f"the files of {path} are gone", field=field)
    for name, entry in read_manifest(folder).items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry.size:
            state = "is missing" if size is None else f"has {size} bytes"
            raise DamagedError(f"the files of {path} are damaged: {name} {state}, it was saved with {entry.size}")


def damaged_files(folder: Path) -> list[str]:
    """Names of the files whose contents are not what the manifest says.

    Raises:
        DamagedError: there is no manifest.
    """
    entries = read_manifest(folder).items()
    return [name for name, entry in entries if not (folder / name).is_file() or _entry(folder / name) != entry]


def read(folder: Path, name: str) -> Iterator[bytes]:
    """A file of a checkpoint in pieces of at most `PIECE` bytes; it is opened now.

    Raises:
        DamagedError: the file is gone.
    """
    try:
        file = (folder / name).open("rb")
    except FileNotFoundError as error:
        raise DamagedError(f"{name} of checkpoint folder {folder.name} is gone") from error

    def pieces() -> Iterator[bytes]:
        with file:
            while piece := file.read(PIECE):
                yield piece

    return pieces()


def remove(root: Path, name: str) -> None:
    """Delete a folder; one that is gone already is no error.

    Raises:
        OSError: the disk refuses; what is left can be removed later.
    """
    try:
        rmtree(root / name)
    except FileNotFoundError:
        return


def older_than(root: Path, moment: float) -> Iterator[str]:
    """Names of the folders below `root` that were last written to before `moment`, seconds since the epoch."""
    if not root.is_dir():
        return
    with os.scandir(root) as entries:
        yield from (entry.name for entry in entries if entry.is_dir() and entry.stat().st_mtime < moment)
