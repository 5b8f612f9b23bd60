"""The oldest and the newest version of the SDK with every change, the others with `make test-slow`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import httpx
import pytest

from mint.cli.private_server import PrivateServer, private_server

from .environments import environment
from .matrix import PROGRAMS, VERSIONS, Outcome, run_programs

SLOW = pytest.mark.slow
CELLS = [
    pytest.param(version, program, marks=[] if version in (VERSIONS[0], VERSIONS[-1]) else [SLOW])
    for version in VERSIONS
    for program in PROGRAMS
]

Run = Callable[[str], dict[str, Outcome]]


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_server() as running:
        yield running


@pytest.fixture(scope="module")
def run(server: PrivateServer) -> Run:
    """All programs of a version, in one process: what it takes to start is most of the time."""

    @cache
    def once(version: str) -> dict[str, Outcome]:
        python = environment(f"tinker=={version}")
        return {outcome.program: outcome for outcome in run_programs(python, server, *PROGRAMS)}

    return once


@pytest.fixture(scope="module")
def routes(server: PrivateServer) -> set[str]:
    return set(httpx.get(f"{server.base_url}/openapi.json").json()["paths"])


@pytest.mark.parametrize(("version", "program"), CELLS)
def test_program(version: str, program: str, run: Run, routes: set[str]) -> None:
    outcomes = run(version)
    assert program in outcomes, f"the programs before it ended the process; it told of {sorted(outcomes)}"
    outcome = outcomes[program]
    assert outcome.sdk == version
    assert outcome.status != "failed", outcome.reason
    served = any(route.endswith("/archive") for route in routes)
    # there is no other reason for a program to have nothing to do
    assert outcome.status == "ok" or (program == "download" and not served), outcome.reason
