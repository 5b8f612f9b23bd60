"""The range of SDK versions that `mint` is made for: declared, tested, and told where it is left."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path

import pytest
import tinker

import mint
from mint.client import patches
from tests.sdks.matrix import VERSIONS

ROOT = Path(__file__).parents[2]


def test_the_range_is_the_one_that_pip_is_told_and_the_table_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"tinker>={patches.OLDEST_SDK}" in project["dependencies"]
    assert f"tinker=={patches.TESTED_SDK}\n" in (ROOT / "constraints.txt").read_text()
    assert {patches.OLDEST_SDK, patches.TESTED_SDK} <= set(VERSIONS)


@pytest.mark.parametrize("version", ["0.30.3", "0.22.0", "0.6.0"])
def test_an_older_sdk_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinker, "__version__", version)
    with pytest.raises(
        ImportError, match=f"^mint {mint.__version__} needs tinker 0.30.4 or later, and tinker {version}"
    ):
        patches.apply()


@pytest.mark.parametrize("version", ["0.39.0", "1.0.0", "1.0"])
def test_a_newer_sdk_is_warned_of(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinker, "__version__", version)
    with pytest.warns(RuntimeWarning, match=f"^mint {mint.__version__} was tested .* 0.38.0, and tinker {version}"):
        patches.apply()


@pytest.mark.parametrize("version", ["0.30.4", "0.38.0", "0.38.7", "built by hand"])
def test_all_others_are_taken_without_a_word(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinker, "__version__", version)
    with warnings.catch_warnings(action="error", category=RuntimeWarning):
        patches.apply()
