"""Rules broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

BROKEN: dict[str, Callable[[], object]] = {}


@contextmanager
def broken(rule: str | None) -> Iterator[None]:
    if rule is None:
        yield
        return
    with BROKEN[rule]():  # type: ignore[attr-defined]
        yield
