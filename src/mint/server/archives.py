"""A checkpoint's files as they are sent: one by one, or as a tar archive that is made while it is sent.

Nothing is compressed: weights hardly can be. An archive's length is known before it is begun.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from mint.server.services import Services
from mint.store import files
from mint.store.files import FileEntry
from mint.store.schema import Checkpoint

END = bytes(2 * tarfile.BLOCKSIZE)


def send_file(services: Services, checkpoint: Checkpoint, name: str) -> StreamingResponse:
    """A file of a checkpoint.

    Raises:
        KeyError: the checkpoint has none of that name.
        DamagedError: the files are not what was saved.
    """
    folder = services.catalog.checkpoint_dir / checkpoint.directory
    size = files.read_manifest(folder)[name].size
    return _send(services, checkpoint, files.read(folder, name), size, "application/octet-stream")


def send_archive(services: Services, checkpoint: Checkpoint) -> StreamingResponse:
    """All files of a checkpoint, and last its manifest, as a tar archive.

    Raises:
        GoneError: the files are not what was saved, or gone.
    """
    folder = services.catalog.checkpoint_dir / checkpoint.directory
    files.check(folder, checkpoint.path or checkpoint.checkpoint_id, "checkpoint_id")
    entries = {**files.read_manifest(folder), files.MANIFEST: files.manifest_entry(folder)}
    size = sum(tarfile.BLOCKSIZE + entry.size + _padding(entry.size) for entry in entries.values()) + len(END)
    return _send(services, checkpoint, _tar(folder, entries, checkpoint.created_at), size, "application/x-tar")


def _tar(folder: Path, entries: dict[str, FileEntry], modified: float) -> Iterator[bytes]:
    for name, entry in entries.items():
        header = tarfile.TarInfo(name)
        header.size, header.mtime = entry.size, int(modified)
        yield header.tobuf(tarfile.GNU_FORMAT)  # sizes over 8 GiB fit into its one block
        yield from files.read(folder, name)
        yield bytes(_padding(entry.size))
    yield END


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE


def _send(
    services: Services, checkpoint: Checkpoint, content: Iterator[bytes], size: int, media_type: str
) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        with services.downloads.one(checkpoint.directory):
            async for piece in iterate_in_threadpool(content):
                yield piece

    return StreamingResponse(pieces(), media_type=media_type, headers={"Content-Length": str(size)})
