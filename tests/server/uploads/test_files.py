"""An adapter's files of any content: they are read, or refused with the file's name, and nothing else happens."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mint.errors import BadRequestError
from mint.server.uploads.adapter import AdapterConfig, read_config, write_adapter
from mint.server.uploads.optimizer import write_optimizer
from mint.server.uploads.tensors import TensorFile, write_tensors
from tests.dispatch.fakes import INFO

from .made import CONFIG_NAME, NUM_PARAMETERS, OPTIMIZER_NAME, RANK, WEIGHTS_NAME, config, factors, optimizer, weights

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SETTINGS = sorted(json.loads(config()).keys() | {"use_rslora", "use_dora", "init_lora_weights", "target_modules"})
unhurried = settings(max_examples=60, deadline=None)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, within: int) -> bytes:
    """Some bytes of the beginning replaced, put in, or left out."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, min(within, len(data)) - 1))
        taken = draw(st.integers(0, 4))
        data[place : place + taken] = draw(st.binary(max_size=4) | st.sampled_from([b"9", b"-", b"e9", b"]", b"0,0"]))
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploaded")


@given(content=damaged(weights(), 1200))
@unhurried
def test_weights(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS_NAME).write_bytes(content)
    (folder / "staged").mkdir(exist_ok=True)
    with suppress(BadRequestError):
        write_adapter(folder, folder / "staged", AdapterConfig(RANK, 16.0, None), INFO)
        kept = load_file(folder / "staged" / WEIGHTS_NAME)
        assert kept.keys() <= factors().keys()
        assert all(np.isfinite(tensor).all() for tensor in kept.values())


@given(content=damaged(optimizer(), 400))
@unhurried
def test_optimizers(folder: Path, content: bytes) -> None:
    (folder / OPTIMIZER_NAME).write_bytes(content)
    (folder / "staged").mkdir(exist_ok=True)
    with suppress(BadRequestError):
        write_optimizer(folder, folder / "staged", NUM_PARAMETERS)
        assert load_file(folder / "staged" / OPTIMIZER_NAME)["exp_avg_sq"].min() >= 0


@given(content=st.dictionaries(st.sampled_from(SETTINGS), JSON).map(lambda odd: json.loads(config()) | odd))
@unhurried
def test_configurations(folder: Path, content: dict[str, Any]) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps(content))
    with suppress(BadRequestError):
        read = read_config(folder)
        assert read.rank >= 1
        assert 0 < read.alpha < np.inf


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = factors(seed=3)
    write_tensors(tmp_path / "a", {name: value.shape for name, value in tensors.items()}, tensors.values())
    read, ours = load_file(tmp_path / "a"), TensorFile(tmp_path / "a")
    assert read.keys() == ours.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert (read[name] == value).all()
        assert (ours.read(name) == value).all()
