"""Checkpoint folders, whole or damaged."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mint.errors import NotFoundError
from mint.store import files
from mint.store.files import DamagedError, FileEntry

WEIGHTS = b"w" * 100


def stage(root: Path, name: str = "c1") -> Path:
    folder = root / f"{name}.staged"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stage(tmp_path)
    files.commit(tmp_path, "c1")
    return tmp_path / "c1"


def test_a_committed_folder_says_what_it_holds(folder: Path) -> None:
    assert not folder.with_name("c1.staged").exists()
    assert files.read_manifest(folder) == {
        "adapter_config.json": FileEntry(2, hashlib.sha256(b"{}").hexdigest()),
        "adapter_model.safetensors": FileEntry(100, hashlib.sha256(WEIGHTS).hexdigest()),
    }
    files.check(folder, "tinker://x", "path")
    assert files.damaged_files(folder) == []


def test_the_manifest_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(tmp_path)
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    files.commit(tmp_path, "c1")
    assert events == ["manifest.json", "c1.staged", "rename", tmp_path.name]


def test_a_second_commit_keeps_the_first(folder: Path) -> None:
    again = stage(folder.parent)
    (again / "adapter_config.json").write_text("something else")
    files.commit(folder.parent, "c1")
    assert not again.exists()
    assert (folder / "adapter_config.json").read_text() == "{}"


def test_damage_is_told(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"x" * 100)
    files.check(folder, "tinker://x", "path")  # of the same size: only the hash tells
    assert files.damaged_files(folder) == [weights.name]
    weights.write_bytes(b"x")
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors has 1 bytes, it was saved with 100"):
        files.check(folder, "tinker://x", "path")
    weights.unlink()
    assert files.damaged_files(folder) == [weights.name]
    with pytest.raises(DamagedError, match="is missing"):
        files.check(folder, "tinker://x", "path")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 1}', '{"files": {"a": {}}}', '{"files": {"a": 1}}'])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match="manifest of checkpoint folder c1"):
        files.check(folder, "tinker://x", "path")


def test_a_folder_that_is_gone_is_not_found(folder: Path) -> None:
    files.remove(folder.parent, "c1")
    files.remove(folder.parent, "c1")
    with pytest.raises(NotFoundError) as refused:
        files.check(folder, "tinker://x", "path")
    assert refused.value.field == "path"


def test_folders_by_age(folder: Path) -> None:
    os.utime(folder, (1000, 1000))
    stage(folder.parent, "c2")
    (folder.parent / "a file").touch()
    assert list(files.older_than(folder.parent, 2000)) == ["c1"]
    assert list(files.older_than(folder.parent / "nowhere", 2000)) == []
