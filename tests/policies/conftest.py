"""One random policy for all tests of policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import EngineDriver, make_driver
from tests.policies.support import save_policy


@pytest.fixture(scope="session")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture
def policy(policy_dir: Path) -> EngineDriver:
    return make_driver(policy_dir)
