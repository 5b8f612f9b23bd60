"""The folders are the architecture: imports between them run one way, and light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mint"

EVERYONE = {"config", "errors", "observability", "openpi"}
MAY_IMPORT: dict[str, set[str]] = {
    # what everyone may import imports none of ours
    "config": set(),
    "errors": set(),
    "observability": set(),
    "openpi": set(),
    "tiny": set(),
    "tiny_vla": {"openpi", "tiny"},
    # wire ◀ store ◀ server ▶ dispatch ▶ engine ▶ models
    "wire": EVERYONE,
    "store": EVERYONE | {"wire"},
    "models": EVERYONE,
    "engine": EVERYONE | {"models"},
    "dispatch": EVERYONE | {"engine"},
    "server": EVERYONE | {"wire", "store", "dispatch", "engine", "models"},
    # the user's side
    "client": EVERYONE,
    "mint": EVERYONE | {"client"},
    "tinker": EVERYONE | {"client"},
    "renderers": {"tiny"},
    "__init__": EVERYONE | {"client", "mint", "tinker"},
    # the command line puts them together
    "cli": EVERYONE | {"wire", "store", "server", "engine", "models", "client", "tiny", "tiny_vla"},
}

TORCH_FREE_ENGINE = {
    "core",
    "channel",
    "formats",
    "grammars",
    "loss_graph",
    "loss_specs",
    "policy_specs",
    "reverse_kl_spec",
    "rollout_correction",
    "scheduler",
}
"""Modules of the engine that the server process imports."""

TORCH_FREE_MODELS = {"token_bytes"}
"""The same of the models."""


def imports_of(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, in a function or outside, but for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "mint":
                yield from (f"mint.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("mint."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mint."))


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    layer = layer_of(path)
    allowed = MAY_IMPORT[layer] | {layer}
    for module in imports_of(path):
        assert module.split(".")[1] in allowed, f"{layer} must not import {module}"


def test_there_is_no_layer_without_a_rule() -> None:
    assert {layer_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("layer", ["server", "dispatch"])
def test_the_server_side_imports_only_torch_free_parts_of_engine_and_models(layer: str) -> None:
    for path in (SOURCE / layer).rglob("*.py"):
        for part, free in (("engine", TORCH_FREE_ENGINE), ("models", TORCH_FREE_MODELS)):
            used = {module.split(".")[2] for module in imports_of(path) if module.startswith(f"mint.{part}.")}
            assert used <= free, path


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_the_server_process_never_loads_torch() -> None:
    loaded = loaded_by("import mint.server.app, mint.cli.main")
    assert "fastapi" in loaded
    assert not loaded & {"torch", "transformers", "tinker"}


def test_a_chat_is_rendered_and_tokenized_without_torch() -> None:
    loaded = loaded_by(
        "from mint.server.openai.tokenizer import load_tokenizer; from mint.tiny import model_path;"
        "tokenizer = load_tokenizer(str(model_path()), 2048);"
        "assert len(tokenizer.encode_chat([{'role': 'user', 'content': 'hi'}], [], {})) > 5"
    )
    assert "transformers" in loaded
    assert "torch" not in loaded


def test_importing_mint_loads_neither_torch_nor_the_web_framework() -> None:
    assert not loaded_by("import mint") & {"torch", "fastapi", "tinker", "numpy"}
