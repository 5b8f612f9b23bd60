"""The names of `mint`, `mint.tinker` and `mint.mint`."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

import pytest
import tinker

import mint
import mint.mint as mintx
from mint.client import namespace

# the package of the SDK's command is in there once it has been imported
PUBLIC = sorted({*tinker.__all__, *(name for name in dir(tinker) if not name.startswith("_"))} - {"cli"})


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_the_sdks_own(name: str) -> None:
    if name != "__version__":
        assert getattr(mint, name) is getattr(tinker, name)
    assert getattr(mint.tinker, name) is getattr(tinker, name)


def test_no_module_of_mint_hides_a_name_of_the_sdk() -> None:
    assert not namespace._OWN_MODULES.intersection(tinker.__all__) - {"__version__"}


def test_the_two_versions() -> None:
    assert mint.tinker.__version__ == tinker.__version__
    assert mint.__version__ == mintx.__version__ == namespace.mint_version()


def test_version_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert mint.__version__ == "0+uninstalled"


def test_dir_lists_them() -> None:
    assert set(tinker.__all__) <= set(dir(mint))
    assert {"mint", "tinker", "__version__"} <= set(dir(mint))
    assert set(tinker.__all__) <= set(dir(mint.tinker))


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from mint import *", names)
    assert names["ServiceClient"] is tinker.ServiceClient
    assert set(tinker.__all__) <= set(names)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mint.types", "tinker.types"),
        ("mint.types.tensor_data", "tinker.types.tensor_data"),
        ("mint.auth", "tinker.auth"),
        ("mint.tinker.types", "tinker.types"),
        ("mint.tinker.types.tensor_data", "tinker.types.tensor_data"),
        ("mint.tinker.lib.base_url", "tinker.lib.base_url"),
        ("mint.tinker._exceptions", "tinker._exceptions"),
    ],
)
def test_submodules_are_the_same_modules(ours: str, theirs: str) -> None:
    module = importlib.import_module(theirs)
    assert importlib.import_module(ours) is module
    assert sys.modules[ours] is module
    assert module.__spec__ is not None
    assert module.__spec__.name == theirs


@pytest.mark.parametrize("name", ["mint.types.nonsense", "mint.tinker.nonsense", "mint.nonsense"])
def test_a_submodule_that_is_not_there(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)


@pytest.mark.parametrize("package", ["mint", "mint.tinker"])
@pytest.mark.parametrize("name", ["nonsense", "_private", "__dunder__"])
def test_an_attribute_that_is_not_there(package: str, name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute '{name}'"):
        getattr(sys.modules[package], name)


def test_server_modules_are_not_reached_by_attribute() -> None:
    with pytest.raises(AttributeError):
        namespace.mint_attribute("client")  # itself it is there, as mint imports it


def test_mint_mint_names_what_it_has() -> None:
    names = sorted(mintx.__all__)
    assert {"Endpoint", "credentials", "forward_backward_reverse_kl", "train_step"} <= set(names)
    with pytest.raises(AttributeError, match=f"no attribute 'magic'; it has: {', '.join(names)}"):
        mintx.magic  # noqa: B018
    assert dir(mintx) == names
    assert all(hasattr(mintx, name) for name in dir(mintx))
