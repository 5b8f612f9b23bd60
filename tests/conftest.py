"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from . import postgres, s3


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL server; tests that need one are skipped where it is not installed."""
    with postgres.cluster() as running:
        yield running or pytest.skip(postgres.ABSENT)


@pytest.fixture(scope="session")
def s3_variables() -> Iterator[dict[str, str]]:
    """The environment of clients of an S3 server."""
    with s3.server() as variables:
        yield variables


@pytest.fixture
def s3_url(s3_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in it that nobody else uses."""
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://mint/{token_hex(4)}"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new database, of the kind that the test asks for by `indirect`: "sqlite" or "postgresql"."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'mint.db'}"
    cluster: postgres.Cluster = request.getfixturevalue("cluster")
    return cluster.database()


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with the tokenizer of mint/tiny; large initial weights, so that log-probabilities differ."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from mint.tiny import model_path

    folder = tmp_path_factory.mktemp("models") / "qwen3-random"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=2,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def moe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts, with a head of its own."""
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    from mint.tiny import model_path

    folder = tmp_path_factory.mktemp("models") / "mixtral-random"
    torch.manual_seed(1)
    config = MixtralConfig(
        vocab_size=2048,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_local_experts=4,
        sliding_window=None,
        initializer_range=0.1,
        eos_token_id=2,
    )
    MixtralForCausalLM(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors in tests are small: a second thread costs more than it gives."""
    import torch

    torch.set_num_threads(1)
