"""What stands for training: integers that remember everything that was done to them, and in which order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from mint.engine.core import AdamParams, FloatArray, Int32Array, Passed, SampledSequence, Stepped
from mint.errors import BadRequestError

PRIME = (1 << 31) - 1
POISONED = 77
"""A token over whose pass the worker says that it is not finite."""
DEADLY_RATE = 0.5
"""A learning rate over whose step the worker dies."""


@dataclass
class State:
    """A run on a worker."""

    weights: int
    moment: int = 0
    steps: int = 0
    gradients: int = 0

    def backward(self, tokens: Int32Array, *, forward_only: bool = False) -> Passed:
        """The log-probabilities tell the weights; equal passes add different gradients after one another.

        Raises:
            BadRequestError: a token is poisoned. Nothing has changed.
        """
        if POISONED in tokens:
            raise BadRequestError("the loss of datum 0 is not finite", datum=0)
        seen = int(tokens.sum())
        value = np.float32(-((self.weights + seen) % 4096) / 8)
        if not forward_only:
            self.gradients = (self.gradients * 31 + seen + self.weights + 1) % PRIME
        return Passed((np.full(len(tokens), value, np.float32),), {"loss:sum": float(-value)})

    def step(self, adam: AdamParams) -> Stepped:
        rate = round(adam.learning_rate * 1e6)
        self.moment = (self.moment * 7 + self.gradients + 1) % PRIME
        self.weights = (self.weights * 33 + self.moment * (rate + 1)) % PRIME
        self.steps += 1
        self.gradients = 0
        return Stepped({"step": float(self.steps), "weights": float(self.weights % 1000)})

    def saved(self) -> State:
        """What a training checkpoint has: everything but gradients."""
        return replace(self, gradients=0)

    def exported(self) -> State:
        """What a revision has: the weights alone."""
        return State(self.weights)


def fresh(seed: int | None) -> State:
    return State((seed or 0) * 7919 % PRIME)


def loaded(saved: State, *, with_optimizer: bool) -> State:
    return saved.saved() if with_optimizer else saved.exported()


def draw(weights: int | None, prompt: Int32Array, seed: int, length: int) -> SampledSequence:
    """A sample that tells what it was drawn from."""
    digest = hashlib.sha256(f"{weights}/{prompt.tolist()}/{seed}".encode()).digest()
    tokens = np.array([3 + byte % 90 for byte in digest[:length]], np.int32)
    logprobs: FloatArray = np.full(length, -0.5, np.float32)
    return SampledSequence(tokens, logprobs, "length")
