"""Time and chance of MinT's modules, taken over by a schedule."""

from __future__ import annotations

import secrets
import sys
import time
from random import Random

from tests.simulation.loop import Clock


class Chance:
    """In place of the `secrets` module; what it draws follows from the seed."""

    def __init__(self) -> None:
        self.random = Random(0)

    def token_hex(self, size: int = 32) -> str:
        return self.token_bytes(size).hex()

    def token_bytes(self, size: int = 32) -> bytes:
        return self.random.randbytes(size)

    def token_urlsafe(self, size: int = 32) -> str:
        return self.token_hex(size)

    def randbits(self, count: int) -> int:
        return self.random.getrandbits(count)


class Sources:
    """The clock and the chance that MinT's modules see: those of the schedule that is being played."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.chance = Chance()

    def begin(self, clock: Clock, random: Random) -> None:
        self.clock, self.chance.random = clock, random

    def take_over(self) -> None:
        """In every module of MinT that has been imported by now."""
        replaced = {
            id(time.time): self._unix,
            id(time.monotonic): self._monotonic,
            id(secrets): self.chance,
            id(secrets.token_hex): self.chance.token_hex,
            id(secrets.token_bytes): self.chance.token_bytes,
        }
        for name, module in list(sys.modules.items()):
            if name.startswith("mint."):
                for attribute, value in list(vars(module).items()):
                    if id(value) in replaced:
                        setattr(module, attribute, replaced[id(value)])

    def _unix(self) -> float:
        return self.clock.unix()

    def _monotonic(self) -> float:
        return self.clock.monotonic()
