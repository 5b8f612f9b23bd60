"""MinT's published clients, unmodified, with `sk-` keys."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mint.cli.private_server import PrivateServer, private_server

from .environments import environment, outside

PROGRAM = Path(__file__).with_name("mindlab_program.py")


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_server() as running:
        yield running


def report(version: str, server: PrivateServer, home: Path) -> dict[str, Any]:
    assert server.api_key.startswith("sk-")
    variables = {"MINT_BASE_URL": server.base_url, "MINT_API_KEY": server.api_key, "HOME": str(home)}
    routes = httpx.get(f"{server.base_url}/openapi.json").json()["paths"]
    if "/api/v1/mint/checkpoints/interpolate" in routes:
        variables["INTERPOLATES"] = "yes"
    done = subprocess.run(
        [environment(f"mindlab-toolkit=={version}"), PROGRAM],
        env=outside(**variables, TINKER_TELEMETRY="0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert ("interpolated" in found) == ("INTERPOLATES" in variables)
    return found


@pytest.mark.parametrize(
    ("version", "sdk"), [("0.2.0", "0.22.0"), pytest.param("0.1.0", "0.15.0", marks=pytest.mark.slow)]
)
def test_published_client(version: str, sdk: str, server: PrivateServer, tmp_path: Path) -> None:
    found = report(version, server, tmp_path)
    assert (found["version"], found["tinker"]) == (version, sdk)
    first, second, third = found["losses"]
    assert third < second < first
    assert len(found["sampled"]) == 2
    assert found["reverse_kl"] > 0
    if version == "0.1.0":
        assert found["legacy"] == 3
