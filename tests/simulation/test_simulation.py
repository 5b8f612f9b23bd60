"""Random schedules, each in the simulated world; and rules broken on purpose, which the schedules must notice.

They run in processes of their own, since they take time and chance away from all modules.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.mutations import RULES


def play(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation", *options]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_schedules() -> None:
    """Their seeds are those that `make simulation` begins with."""
    played = play("--schedules", "100", "--processes", "1")
    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    played = play("--schedules", "10000")
    assert played.returncode == 0, played.stdout + played.stderr


def test_a_seed_is_played_exactly_again() -> None:
    """132 has kills, a locked database and a dead worker."""
    first, second = play("--seed", "132"), play("--seed", "132")
    assert "server is killed" in first.stdout
    assert first.stdout == second.stdout


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str) -> None:
    played = play("--break", rule, "--schedules", "2500", "--processes", "1")
    assert played.returncode == 1, f"nothing was noticed: {played.stderr}"
    assert "seed" in played.stdout


def test_what_waits_for_refused_numbers_is_noticed() -> None:
    """One of the broken rules in every run of the tests: the checks can fail."""
    played = play("--break", "waiting-for-refused-numbers", "--schedules", "100", "--processes", "1")
    assert played.returncode == 1
    assert "was waited for although it had come" in played.stdout
