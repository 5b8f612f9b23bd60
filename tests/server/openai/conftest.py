"""Fixtures of the tests of OpenAI's API."""

from __future__ import annotations

from .world import world

__all__ = ["world"]
