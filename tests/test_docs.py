"""The documents: their Python runs, and the files they name are there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint.cli.private_server import PrivateServer, private_server

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{document.name}-{place}")
    for document in DOCUMENTS
    for place, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL))
]


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_server(["mint/tiny", "openpi/pi0-fast-tiny"]) as running:
        yield running


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block: str, server: PrivateServer) -> None:
    environment = os.environ | {"MINT_BASE_URL": server.base_url, "MINT_API_KEY": server.api_key}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    # the threads of the SDK's HTTP client now and then abort an interpreter that has run to its end
    assert done.returncode == 0 or (done.returncode == -signal.SIGABRT and not done.stderr), done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    for link in links:
        assert (document.parent / link).exists(), link
    # in the architecture, `server/auth.py` means src/mint/server/auth.py
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "src/mint" / name).exists(), name


def test_every_command_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
