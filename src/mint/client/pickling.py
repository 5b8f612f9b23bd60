"""How a pickled SDK client is loaded in a process that never imported `mint`.

The SDK pickles a sampling client by naming a function of its own, so the loading process would import a
plain SDK, which refuses MinT keys. Naming `revive` first makes it import `mint`, which prepares the SDK.
Must not import the SDK itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def revive(rebuild: Callable[..., T], args: tuple[object, ...]) -> T:
    """Do what the pickle asked for, now that the SDK is prepared."""
    return rebuild(*args)
