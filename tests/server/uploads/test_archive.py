"""What is taken out of an archive that a stranger has made, and what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.errors import BadRequestError
from mint.server.uploads import archive
from mint.server.uploads.archive import FREE_BYTES, HEADER_BYTES, MAX_ENTRIES, MAX_OTHER_BYTES, unpack

from .made import tar

WANTED = {"a": 1000, "b": 10 << 20}
GOOD = {"folder/README.md": b"x" * 10_000, "folder/a": b"first", "folder/b": b"second" * 1000}


def taken(packed: bytes, folder: Path, wanted: dict[str, int] = WANTED) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    names = unpack(io.BytesIO(packed), folder, wanted)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == names
    return files


def entry(name: str = "a", size: int = 0, **fields: object) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    for field, value in fields.items():
        setattr(header, field, value)
    return header.tobuf()


def refused(packed: bytes, folder: Path, match: str, wanted: dict[str, int] = WANTED) -> None:
    folder.mkdir(exist_ok=True)
    with pytest.raises(BadRequestError, match=match) as refusal:
        unpack(io.BytesIO(packed), folder, wanted)
    assert refusal.value.field == "file"


@pytest.mark.parametrize(
    "form", ["plain", "gzip", "two gzip members", "zstd", "two zstd frames", "pax", "ustar", "gnu"]
)
def test_what_is_wanted_is_taken(tmp_path: Path, form: str) -> None:
    packed = tar(GOOD)
    half = len(packed) // 2
    formats = {"pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT}
    if form in formats:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w", format=formats[form]) as file:
            for name, content in GOOD.items():
                header = tarfile.TarInfo(name)
                header.size, header.mtime = len(content), 1.5
                file.addfile(header, io.BytesIO(content))
        packed = written.getvalue()
    elif form == "gzip":
        packed = gzip.compress(packed)
    elif form == "two gzip members":
        packed = gzip.compress(packed[:half]) + gzip.compress(packed[half:])
    elif form == "zstd":
        packed = zstandard.compress(packed)
    elif form == "two zstd frames":
        packed = zstandard.compress(packed[:half]) + zstandard.compress(packed[half:])
    assert taken(packed, tmp_path / "out") == {"a": b"first", "b": b"second" * 1000}


@pytest.mark.parametrize("name", ["/a", "../a", "x/../../a", "..", "x\\a", "a\nb", "//a", "x/\u202ea"], ids=repr)
def test_a_path_out_of_the_archive(tmp_path: Path, name: str) -> None:
    refused(tar({name: b"x"}), tmp_path / "out", "path out of the archive")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_devices_and_sparse_files(tmp_path: Path, kind: bytes) -> None:
    packed = entry(type=kind, linkname="/etc/passwd") + bytes(10240)
    refused(packed, tmp_path / "out", "link, a device or a sparse file|is no tar archive")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["adapter_model.bin", "x/optimizer.pt", "a.pkl", "training_args.bin", "m.ckpt"])
def test_pickles(tmp_path: Path, name: str) -> None:
    refused(tar({name: b"\x80\x05."}), tmp_path / "out", "a pickle, which is never read")


def test_names_that_are_there_twice(tmp_path: Path) -> None:
    refused(entry("a") + entry("a") + bytes(1024), tmp_path / "out1", "has a twice")
    refused(entry("x") + entry("./x") + bytes(1024), tmp_path / "out2", "has x twice")
    refused(tar({"one/a": b"", "two/a": b""}), tmp_path / "out3", "more than one a")


def test_sizes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    refused(entry("a", 1001), tmp_path / "out", "has a with 1001 bytes; 1000 is the most")
    refused(entry("other", MAX_OTHER_BYTES + 1), tmp_path / "out", "has other with")
    refused(entry("b", -1), tmp_path / "out", "has b with -1 bytes|no tar archive")
    assert not list((tmp_path / "out").iterdir())


def test_more_entries_than_a_checkpoint_has(tmp_path: Path) -> None:
    few, many = ({f"{number}.txt": b"" for number in range(count)} for count in (MAX_ENTRIES, MAX_ENTRIES + 1))
    assert taken(tar(few), tmp_path / "out") == {}
    refused(tar(many), tmp_path / "out", f"more than {MAX_ENTRIES} entries")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [8 << 30, 100 << 20])
def test_headers_of_any_length_take_no_memory(tmp_path: Path, kind: bytes, size: int) -> None:
    packed = gzip.compress(entry("x", size, type=kind) + bytes(100 << 20), 1)
    tracemalloc.start()
    refused(packed, tmp_path / "out", f"more than {HEADER_BYTES} bytes of headers|is no tar")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_headers_one_after_another(tmp_path: Path) -> None:
    packed = b"".join(entry("x", 0, type=tarfile.XHDTYPE) for _ in range(5000))
    refused(packed, tmp_path / "out", "headers|is no tar archive")


@pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, 1), zstandard.compress])
def test_a_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: object) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 20)
    size = 64 << 20
    packed = compress(entry("b", size) + bytes(size) + bytes(1024))  # type: ignore[operator]
    refused(packed, tmp_path / "out", "unpacks to more than 200 times its size", {"b": size})
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 32 << 20
    assert FREE_BYTES > 1 << 20


def test_an_archive_that_ends_early_or_is_damaged(tmp_path: Path) -> None:
    packed = gzip.compress(tar(GOOD))
    for number, bad in enumerate((packed[:-30], packed[:60], b"", b"\x1f\x8b", b"PK\x03\x04" + bytes(600))):
        refused(bad, tmp_path / f"out{number}", "is no tar archive")
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    refused(bytes(flipped), tmp_path / "flipped", "is no tar archive|has more than|has ")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_an_archive_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    packed = bytearray(tar(GOOD, data.draw(st.sampled_from(["w", "w:gz"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(packed), 2048) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        packed[place : place + len(piece)] = piece
    folder = tmp_path_factory.mktemp("any")
    with suppress(BadRequestError):
        names = unpack(io.BytesIO(bytes(packed)), folder, WANTED)
        assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in folder.iterdir()} <= WANTED.keys()
