"""Takes a checkpoint's files out of a tar archive, plain or compressed with gzip or zstd.

Nothing of the archive but its bytes reaches the disk: the files have names of ours, whatever theirs are, and no more is
decompressed than an entry says it has.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol

import zstandard

from mint.errors import BadRequestError

FIELD = "file"

MAX_ENTRIES = 256
MAX_OTHER_BYTES = 64 << 20
"""Of an entry that is passed over, such as a tokenizer or a README."""
HEADER_BYTES = 64 << 10
"""Of an entry's headers: tarfile reads one of whatever length it claims, and as many as there are in a row."""
MAX_RATIO, FREE_BYTES = 200, 64 << 20
"""What is unpacked may be so many times what was packed, beyond the first bytes. Weights hardly compress at all, but an
adapter's B factors and moments begin as zeros."""
WINDOW_BYTES = 128 << 20
PIECE = 1 << 20

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
MAGIC_GZIP, MAGIC_ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

NOT_TAR = (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, RecursionError)
"""What the libraries raise on bytes that are no archive."""


class Readable(Protocol):
    """Bytes to read."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        ...


class Allowance:
    """A decompressed stream that gives no more than it was last allowed."""

    def __init__(self, stream: Readable, packed: BinaryIO) -> None:
        self._stream = stream
        self._packed = packed
        self._left = HEADER_BYTES
        self._total = 0

    def allow(self, size: int) -> None:
        """Let so many bytes be read from now on, and a header."""
        self._left = size + HEADER_BYTES

    def read(self, size: int) -> bytes:
        """As a file's.

        Raises:
            BadRequestError: more is read than was allowed, or unpacks to more than it should.
        """
        data = self._stream.read(size)
        self._left -= len(data)
        self._total += len(data)
        if self._left < 0:
            raise BadRequestError(f"has an entry with more than {HEADER_BYTES} bytes of headers", field=FIELD)
        if self._total > FREE_BYTES + MAX_RATIO * self._packed.tell():
            raise BadRequestError(f"unpacks to more than {MAX_RATIO} times its size", field=FIELD)
        return data


def unpack(archive: BinaryIO, folder: Path, wanted: Mapping[str, int]) -> set[str]:
    """Write those files of an archive to `folder` that are `wanted`, wherever in it they are; returns their names.

    Args:
        wanted: by its name, how many bytes a file may have.

    Raises:
        BadRequestError: it is no archive, or one that no checkpoint would be in; it says which entry is at fault.
        OSError: the disk refuses.
    """
    try:
        stream = Allowance(_decompressed(archive), archive)
        with tarfile.open(fileobj=_as_file(stream), mode="r|", bufsize=tarfile.RECORDSIZE) as tar:
            return _unpack(tar, stream, folder, wanted)
    except NOT_TAR as error:
        raise BadRequestError(
            f"is no tar archive, plain or with gzip or zstd, or is damaged: {error}", field=FIELD
        ) from None


def _decompressed(archive: BinaryIO) -> Readable:
    magic = archive.read(4)
    archive.seek(0)
    if magic.startswith(MAGIC_GZIP):
        return gzip.GzipFile(fileobj=archive)
    if magic == MAGIC_ZSTD:
        return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).stream_reader(archive, read_across_frames=True)
    return archive


def _as_file(stream: Allowance) -> IO[bytes]:
    """Of a file, tarfile's streams use `read` alone."""
    return stream  # type: ignore[return-value]


def _unpack(tar: tarfile.TarFile, stream: Allowance, folder: Path, wanted: Mapping[str, int]) -> set[str]:
    seen: set[str] = set()
    found: set[str] = set()
    for member in _entries(tar, stream):
        path = _path_of(member)
        if str(path) in seen:
            raise BadRequestError(f"has {path} twice", field=FIELD)
        seen.add(str(path))
        if path.name in found:
            raise BadRequestError(f"has more than one {path.name}", field=FIELD)
        limit = wanted.get(path.name, MAX_OTHER_BYTES)
        if not 0 <= member.size <= limit:
            raise BadRequestError(f"has {path} with {member.size} bytes; {limit} is the most", field=FIELD)
        stream.allow(member.size)
        if path.name in wanted:
            _write(tar, member, folder / path.name)
            found.add(path.name)
    return found


def _entries(tar: tarfile.TarFile, stream: Allowance) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive, in its order; folders are passed over."""
    for place, member in enumerate(tar):
        if place == MAX_ENTRIES:
            raise BadRequestError(f"has more than {MAX_ENTRIES} entries", field=FIELD)
        if member.isdir():
            stream.allow(0)
            continue
        if not member.isreg() or member.issparse():
            raise BadRequestError(f"has {member.name!r}, which is a link, a device or a sparse file", field=FIELD)
        yield member


def _path_of(member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not member.name.isprintable():
        raise BadRequestError(f"has {member.name!r}, which is a path out of the archive or no name", field=FIELD)
    if path.suffix in PICKLES:
        raise BadRequestError(f"has {path}, a pickle, which is never read; save weights as safetensors", field=FIELD)
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None, "a regular file"
    with target.open("xb") as file:
        while piece := source.read(PIECE):
            file.write(piece)
