"""The lazy names of `mint` and `mint.tinker` (PEP 562): the SDK is loaded when one of its names is used.

Knows which names belong to MinT itself. Must not load the SDK at import, nor for a name of MinT's own:
`from mint import server` asks here first, and a server process never needs the SDK.
"""

from __future__ import annotations

import os
from importlib import import_module

TYPE_CHECKING = False  # as in `typing`, without its import
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

# Reached as attributes of `mint` without an import of their own. The other modules of the package must be
# imported by name, as usual: reaching for one must not load a web framework by accident.
_USER_SIDE = ("mint", "renderers", "tinker")

# The modules of `mint` by their file names, which is cheaper than asking the import system for each; and
# pathlib is slow to import.
_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
_OWN_MODULES = frozenset(entry.partition(".")[0] for entry in os.listdir(_PACKAGE_FOLDER))  # noqa: PTH208

# Every name with an underscore but these is answered without loading the SDK: tools that walk over all
# modules ask for `__wrapped__`, `_repr_html_` and the like.
_SDK_DUNDERS = ("__all__", "__title__", "__version__")


def mint_attribute(name: str) -> Any:
    """`mint.<name>`: MinT's own version and modules first, then the SDK's public names."""
    if name == "__version__":
        return mint_version()
    if name in _OWN_MODULES:
        if name in _USER_SIDE:
            return import_module(f"mint.{name}")
        raise _no_attribute("mint", name)
    return _sdk_attribute("mint", name)


def mint_names() -> list[str]:
    """What `dir(mint)` shows."""
    return sorted({*_sdk_names(), *_OWN_MODULES.intersection(_USER_SIDE)})


def tinker_attribute(name: str) -> Any:
    """`mint.tinker.<name>`: the SDK's public names and its version."""
    return _sdk_attribute("mint.tinker", name)


def tinker_names() -> list[str]:
    """What `dir(mint.tinker)` shows."""
    return sorted(_sdk_names())


def mint_version() -> str:
    """MinT's version, as installed; a source tree that was never installed says so."""
    from importlib import metadata  # noqa: PLC0415  # slow to import, rarely needed

    try:
        return metadata.version("mint")
    except metadata.PackageNotFoundError:
        return "0+uninstalled"


def _sdk_attribute(package: str, name: str) -> Any:
    if name.startswith("_") and name not in _SDK_DUNDERS:
        raise _no_attribute(package, name)
    try:
        return getattr(_sdk(), name)
    except AttributeError:
        raise _no_attribute(package, name) from None


def _sdk() -> ModuleType:
    return import_module("tinker")


def _sdk_names() -> set[str]:
    return {name for name in dir(_sdk()) if not name.startswith("_") or name in _SDK_DUNDERS}


def _no_attribute(package: str, name: str) -> AttributeError:
    return AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
