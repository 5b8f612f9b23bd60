"""Tokenizers of models that only the server has: fetched through the SDK's clients, kept by their hash."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import mint
from mint.client import tokenizers
from mint.tiny import NAME, model_path
from tests.server.live import ALICE, LiveServer

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Serves the built-in model under a name that no hub has, too."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(model_path(), folder / "model")
    started = LiveServer(folder, "--model", f"lab/own={folder / 'model'}").start()
    yield started
    assert started.stop() == 0


@pytest.fixture
def service(server: LiveServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with mint.ServiceClient(base_url=server.url, api_key=ALICE) as client:
        yield client


def cached(home: Path) -> list[Path]:
    return sorted(path for path in (home / ".cache" / "mint" / "tokenizers").rglob("*") if path.is_file())


def test_clients_of_both_kinds_have_the_servers_tokenizer(service: mint.ServiceClient, home: Path) -> None:
    expected = AutoTokenizer.from_pretrained(model_path())
    sampler = service.create_sampling_client(base_model="lab/own").result(60)
    tokenizer = sampler.get_tokenizer()
    assert tokenizer.encode(TEXT) == expected.encode(TEXT)
    assert tokenizer.chat_template == expected.chat_template
    first = {path: path.stat().st_mtime_ns for path in cached(home)}
    assert {path.name for path in first} >= {"tokenizer.json", "tokenizer_config.json"}
    assert not [path for path in first if path.suffix == ".safetensors"]
    run = service.create_lora_training_client("lab/own", rank=4).result(60)
    assert run.get_tokenizer().encode(TEXT) == expected.encode(TEXT)
    assert {path: path.stat().st_mtime_ns for path in cached(home)} == first


def test_what_is_not_what_was_announced_is_not_kept(
    service: mint.ServiceClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = tokenizers._get

    def damaged(holder: object, route: str, **query: str) -> object:
        answer = get(holder, route, **query)
        if route:
            answer._content = answer.content + b" "
        return answer

    monkeypatch.setattr(tokenizers, "_get", damaged)
    sampler = service.create_sampling_client(base_model="lab/own").result(60)
    with pytest.raises(tokenizers.TokenizerError, match="not the file that the server announced"):
        sampler.get_tokenizer()
    assert cached(home) == []


def test_a_server_names_no_path() -> None:
    for name in ("../evil", "/etc/passwd", ".bashrc", "", "a/b"):
        with pytest.raises(tokenizers.TokenizerError, match="names a file"):
            tokenizers._checked(name)


def test_files_that_are_none_of_the_tokenizer_are_not_handed_out(server: LiveServer) -> None:
    listed = server.get("tokenizer?model_name=lab/own").json()["files"]
    assert "model.safetensors" not in listed
    for name in ("model.safetensors", "../data/local_key", "missing.json"):
        answer = server.get(f"tokenizer/file?model_name=lab/own&name={name}")
        assert (answer.status_code, answer.json()["field"]) == (404, "name")
    unknown = server.get(f"tokenizer?model_name={NAME}")
    assert (unknown.status_code, unknown.json()["field"]) == (400, "base_model")
