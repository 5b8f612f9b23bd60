"""Folders that survive a crash once they are committed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from mint.engine.core import Saved


def fresh_folder(directory: Path) -> None:
    """Make an empty folder; what a worker that died while writing it left there is removed."""
    rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def write_folder(directory: Path, write: Callable[[Path], None]) -> Saved:
    """Make an empty folder, have `write` fill it, and flush it to the disk."""
    fresh_folder(directory)
    write(directory)
    return Saved(sync_folder(directory))


def sync_folder(directory: Path) -> int:
    """Flush a folder's files and entries to the disk; returns the size of its files in bytes."""
    total = 0
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            total += os.fstat(descriptor).st_size if path is not directory else 0
        finally:
            os.close(descriptor)
    return total
