"""Checkpoint folders in a store of objects: a real S3 server, and a folder behind the same interface."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import obstore
import pytest

from mint.errors import MintError, NotFoundError
from mint.store import files
from mint.store.files import DamagedError
from mint.store.folders import CheckpointStore, LocalStore
from mint.store.objects import RECENTLY_SECONDS, ObjectStore

WEIGHTS = os.urandom(100)
LONG_AGO = time.time() - 2 * RECENTLY_SECONDS
ONE_TRY = {"max_retries": 0}


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_url") if request.param == "s3" else f"file://{tmp_path}/objects"


@pytest.fixture
def store(url: str, tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "checkpoints", url, cache_bytes=1 << 30, retry=ONE_TRY)


def stage(store: CheckpointStore, name: str = "c1", weights: bytes = WEIGHTS) -> Path:
    folder = store.root / f"{name}.staged"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def save(store: CheckpointStore, name: str = "c1", weights: bytes = WEIGHTS) -> Path:
    stage(store, name, weights)
    store.commit(name)
    return store.root / name


def objects(store: ObjectStore) -> list[str]:
    return sorted(found["path"] for page in obstore.list(store._objects) for found in page)


def test_a_committed_folder_is_here_and_there(store: ObjectStore) -> None:
    folder = save(store)
    names = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert objects(store) == [f"c1/{name}" for name in names]
    assert store.is_here("c1")
    assert not folder.with_name("c1.staged").exists()


def test_a_folder_comes_back_as_it_was(store: ObjectStore) -> None:
    """Large enough to be uploaded in parts."""
    weights = os.urandom(11 << 20)
    folder = save(store, weights=weights)
    files.remove(store.root, "c1")
    assert not store.is_here("c1")
    store.fetch("c1")
    assert store.is_here("c1")
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    assert files.damaged_files(folder) == []
    assert [path.name for path in store.root.iterdir()] == ["c1"]


def test_a_half_of_a_local_copy_is_fetched_again(store: ObjectStore) -> None:
    folder = save(store)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert not store.is_here("c1")
    store.fetch("c1")
    assert files.damaged_files(folder) == []


def test_what_is_not_what_was_saved_is_not_read(store: ObjectStore) -> None:
    save(store)
    files.remove(store.root, "c1")
    obstore.put(store._objects, "c1/adapter_model.safetensors", b"x" * len(WEIGHTS))
    with pytest.raises(DamagedError, match=r"c1/adapter_model\.safetensors in .* is not what was saved"):
        store.fetch("c1")
    assert list(store.root.iterdir()) == []


def test_a_second_commit_keeps_the_first(store: ObjectStore) -> None:
    save(store)
    stage(store, weights=b"another")
    store.commit("c1")
    assert [path.name for path in store.root.iterdir()] == ["c1"]
    # also where the kill was before the local copy had its name
    files.remove(store.root, "c1")
    stage(store, weights=b"another")
    store.commit("c1")
    assert [path.name for path in store.root.iterdir()] == ["c1"]
    assert (store.root / "c1" / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_an_upload_that_ends_half_way_is_not_a_checkpoint(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(store)
    put = obstore.put

    def cut(objects: Any, path: str, file: Any) -> Any:
        if path.endswith("manifest.json"):
            raise obstore.exceptions.GenericError("the network is down")
        return put(objects, path, file)

    with monkeypatch.context() as patch:
        patch.setattr("mint.store.objects.obstore.put", cut)
        with pytest.raises(OSError, match="the network is down"):
            store.commit("c1")
    assert objects(store) == ["c1/adapter_config.json", "c1/adapter_model.safetensors"]
    assert [path.name for path in store.root.iterdir()] == ["c1.staged"]
    with pytest.raises(NotFoundError):
        store.fetch("c1")
    # it is swept where nothing comes of it, and becomes one where the save is carried out again
    assert set(store.older_than(time.time() + 60)) == {"c1", "c1.staged"}
    store.commit("c1")
    assert "c1/manifest.json" in objects(store)


def test_removal_leaves_nothing_here_or_there(store: ObjectStore) -> None:
    for name in ("c1", "c10"):
        save(store, name)
    for _ in range(2):
        store.remove("c1")
    assert {path.partition("/")[0] for path in objects(store)} == {"c10"}
    assert [path.name for path in store.root.iterdir()] == ["c10"]


def test_folders_by_age(store: ObjectStore) -> None:
    save(store)
    files.remove(store.root, "c1")
    store.claim("me")
    assert list(store.older_than(LONG_AGO)) == []
    assert list(store.older_than(time.time() + 60)) == ["c1"]


def test_the_cache_drops_what_was_used_longest_ago(url: str, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "checkpoints", url, cache_bytes=32_000)
    for age, name in enumerate("abcde"):
        folder = save(store, name, os.urandom(10_000))
        os.utime(folder, (LONG_AGO + age, LONG_AGO + age))
    (store.root / "f.staged").mkdir()
    assert store.is_here("b")  # which is a use
    store.trim({"c"})
    assert sorted(path.name for path in store.root.iterdir()) == ["b", "c", "e", "f.staged"]
    for name in "abcde":
        store.fetch(name)
    assert len(list(store.root.iterdir())) == 6


def test_what_is_asked_for_while_the_cache_is_trimmed_stays(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path / "checkpoints", url, cache_bytes=0)
    folder = save(store)
    os.utime(folder, (LONG_AGO, LONG_AGO))
    is_whole = store._is_whole
    monkeypatch.setattr(store, "_is_whole", lambda name: store.is_here(name) and is_whole(name))
    store.trim(())
    assert store.is_here("c1")


def test_what_took_long_to_upload_is_not_trimmed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path / "checkpoints", f"file://{tmp_path}/objects", cache_bytes=0)
    staged, put = stage(store), obstore.put

    def slow(*what: Any) -> None:
        put(*what)
        os.utime(staged, (LONG_AGO, LONG_AGO))

    monkeypatch.setattr("mint.store.objects.obstore.put", slow)
    store.commit("c1")
    store.trim(())
    assert store.is_here("c1")


def test_the_cache_keeps_what_is_nowhere_else(url: str, tmp_path: Path) -> None:
    """Checkpoints that were saved before there was a store of objects."""
    local = LocalStore(tmp_path / "checkpoints")
    os.utime(save(local), (LONG_AGO, LONG_AGO))
    store = ObjectStore(local.root, url, cache_bytes=0)
    store.trim(())
    assert store.is_here("c1")


@pytest.mark.parametrize("kind", ["local", "objects"])
def test_what_belongs_to_another_database_is_refused(store: ObjectStore, kind: str) -> None:
    claimed = store if kind == "objects" else LocalStore(store.root)
    for _ in range(2):
        claimed.claim("mine")
    with pytest.raises(MintError, match="belongs to another database"):
        claimed.claim("yours")


def test_a_store_that_does_not_answer_is_told(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path / "checkpoints", s3_url, 0, retry=ONE_TRY)
    folder = save(store)
    os.utime(folder, (LONG_AGO, LONG_AGO))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = ObjectStore(store.root, s3_url, 0, retry=ONE_TRY)
    with pytest.raises(MintError, match="cannot be used: s3://mint") as refused:
        gone.claim("me")
    assert refused.value.field == "checkpoint_store"
    stage(store, "c2")
    for ask in (gone.commit, gone.remove, gone.fetch):
        with pytest.raises(OSError, match="s3://mint"):
            ask("c2")
    gone.trim(())
    assert folder.exists()


def test_a_wrong_secret_is_told(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(MintError, match="cannot be used"):
        ObjectStore(tmp_path, s3_url, 0, retry=ONE_TRY).claim("me")


@pytest.mark.parametrize("wrong", ["bucket", "ftp://host/folder", "s3:bucket", ""])
def test_what_is_no_store_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(MintError, match="checkpoint_store: must begin with one of s3://"):
        ObjectStore(tmp_path, wrong, 0)
