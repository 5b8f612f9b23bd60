"""`mint checkpoints merge`: what it refuses, and that it leaves no half of a folder."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import Connection
from typer.testing import CliRunner

from mint.cli.main import app
from mint.engine import merging
from mint.store import checkpoints
from mint.store.database import Database
from mint.store.objects import ObjectStore
from mint.tiny import NAME
from mint.tiny_vla import model_path as policy_path
from tests.store import rows

LAYER = "base_model.model.model.layers.0.mlp.down_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder that PEFT could have written, for the built-in model."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": NAME}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weight = dict(merging._weights(merging.load_base(_location())))["model.layers.0.mlp.down_proj"]
    factors = {"A": torch.ones(2, weight.shape[1]), "B": torch.ones(weight.shape[0], 2)}
    save_file(
        {f"{LAYER}.lora_{name}.weight": factor for name, factor in factors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def _location() -> str:
    from mint.cli.serve import model_source

    return model_source(NAME).location


def merge(tmp_path: Path, source: object, *options: str, code: int = 0) -> str:
    arguments = ["checkpoints", "merge", str(source), "--output", str(tmp_path / "out"), *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return " ".join(done.stderr.split()) if code else done.stdout


def test_a_downloaded_folder_is_merged_into_the_base_model_that_it_names(tmp_path: Path, adapter: Path) -> None:
    assert f"{NAME} with {adapter}" in merge(tmp_path, adapter)
    before, after = (merging.load_base(str(where)) for where in (_location(), tmp_path / "out"))
    ours, base = (dict(merging._weights(model))["model.layers.0.mlp.down_proj"].detach() for model in (after, before))
    assert ours.dtype == base.dtype == torch.bfloat16
    change = ours.float() - base.float()
    # alpha / r · B A is 2 · 2 everywhere, beside which bfloat16 has steps of 1/64
    assert float((change - 4).abs().max()) <= 1 / 64


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_checkpoint_that_is_in_a_store_of_objects_alone(tmp_path: Path, adapter: Path, database_url: str) -> None:
    data, url = tmp_path / "data", f"file://{tmp_path}/objects"
    store = ObjectStore(data / "checkpoints", url, cache_bytes=0)
    shutil.copytree(adapter, store.root / "c1.staged")
    store.commit("c1")
    shutil.rmtree(store.root)
    database = Database(database_url)
    path = "tinker://s:train:0/sampler_weights/a"

    def write(connection: Connection) -> None:
        rows.insert_run(connection)
        checkpoints.put(connection, rows.checkpoint(path=path, base_model=NAME))

    asyncio.run(database.transaction(write))
    database.close()
    options = ["--data-dir", str(data), "--database-url", database_url]
    assert "name it: --checkpoint-store" in merge(tmp_path, path, *options, code=1)
    assert "does not exist" in merge(tmp_path, f"{path}-not", *options, code=1)
    assert f"{NAME} with {path}" in merge(tmp_path, path, *options, "--checkpoint-store", url)
    assert not store.root.exists(), "a server that runs has its cache to itself"


def test_what_is_refused(tmp_path: Path, adapter: Path) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    assert "neither a tinker:// path nor a folder" in merge(tmp_path, tmp_path / "nowhere", code=1)
    assert "is no server's folder" in merge(tmp_path, "tinker://a/weights/b", *data, code=1)
    assert "no checkpoint path" in merge(tmp_path, "tinker://a", *data, code=1)
    assert "does not load" in merge(tmp_path, adapter, "--base", str(tmp_path), code=1)
    assert "sees images" in merge(tmp_path, adapter, "--base", str(policy_path(16)), code=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    assert "exists" in merge(tmp_path, adapter, code=1)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["file"]


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_model: object, _location: str, directory: Path, _size: str) -> None:
        (directory / "half").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(merging, "save", full)
    assert "No space left" in merge(tmp_path, adapter, code=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter"]
