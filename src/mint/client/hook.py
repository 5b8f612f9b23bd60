"""Prepares the Tinker SDK when it is first imported, and gives its modules their `mint.` names.

A finder at the head of `sys.meta_path`: it lets the usual finders find `tinker`, and applies the patches
once the SDK has run; `mint.types`, `mint.auth` and all of `mint.tinker.…` it answers with the SDK's own
modules, since finding them by path would load every class a second time. Knows the import system and the
names of the two packages; must not load the SDK, nor know what the patches do.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # as in `typing`, without its import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from types import ModuleType
else:
    Loader = object  # its methods are all that the import system asks for; `importlib.abc` is slow to import

_SDK = "tinker"

# Modules of the SDK that are public names of it, and so are modules of `mint` as well.
_PUBLIC_MODULES = ("auth", "types")


def install() -> None:
    """Prepare the SDK now if it is loaded, and otherwise when it will be. Repeating it does nothing."""
    if not any(type(finder).__qualname__ == SDKFinder.__qualname__ for finder in sys.meta_path):
        sys.meta_path.insert(0, SDKFinder())
    if sys.modules.get(_SDK) is not None:
        import_module(_SDK)  # waits for another thread that may be half-way through the import
        _apply_patches()


class SDKFinder:
    """The finder: the SDK itself, and its modules under MinT's names; leaves all else to the others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer the import system."""
        if fullname == _SDK:
            return self._find_sdk(path, target)
        if fullname.startswith("mint.") and (sdk_name := _sdk_name(fullname)):
            return _find_alias(fullname, sdk_name)
        return None

    def _find_sdk(self, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(_SDK, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


class _PatchingLoader(Loader):
    """Runs the SDK through its own loader, then patches it."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Step aside first: tools that read sources or resources ask a module for its loader.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _apply_patches()


class _AliasLoader(Loader):
    """Loads a module under a second name: no copy, the same module object."""

    def __init__(self, sdk_name: str) -> None:
        self._sdk_name = sdk_name

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make an empty module; `exec_module` puts the real one in its place."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(self._sdk_name)


def _sdk_name(fullname: str) -> str | None:
    """The SDK's own name of a module of `mint`, or None for a module that is MinT's."""
    _, first, *rest = fullname.split(".")
    if first == _SDK and rest:
        return ".".join((_SDK, *rest))
    if first in _PUBLIC_MODULES:
        return ".".join((_SDK, first, *rest))
    return None


def _find_alias(fullname: str, sdk_name: str) -> ModuleSpec | None:
    from importlib.util import find_spec  # noqa: PLC0415  # only for users of the SDK

    if find_spec(sdk_name) is None:
        return None
    return ModuleSpec(fullname, _AliasLoader(sdk_name), origin=sdk_name)


def _apply_patches() -> None:
    from mint.client import patches  # noqa: PLC0415  # loads the SDK

    patches.apply()
