"""How many threads a batch is worth, and which of its operations.

Threads that wait for each other between two operations must either spin, which ruins everyone's speed as soon as
another program wants the cores, or sleep, which costs tens of microseconds at every operation. Workers sleep
(`OMP_WAIT_POLICY`), so an operation that takes no longer than a wake-up runs on one thread: in a small batch that is
every operation, in a medium one all but products with base weights, attention and what is of the vocabulary's size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

WORTH_A_THREAD = 30_000_000
"""Floating-point operations of an average product; one thread does as many in about a millisecond."""

WIDE_ELEMENTS = 200_000
"""Hidden activations of a batch, from which on what is done to each of them is worth all threads as well."""


class _Wide:
    """Around an operation that is worth more threads than the others of the running batch."""

    def __init__(self) -> None:
        self.many = self.few = torch.get_num_threads()
        self._depth = 0

    def set(self, many: int, few: int) -> None:
        """Threads inside and outside."""
        self.many, self.few = many, few
        if few != torch.get_num_threads():
            torch.set_num_threads(few)

    def when(self, is_worth_it: bool) -> AbstractContextManager[None]:
        """This, or nothing."""
        return self if is_worth_it else nullcontext()

    def __enter__(self) -> None:
        self._depth += 1
        if self.many != self.few:
            torch.set_num_threads(self.many)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self.many != self.few and not self._depth:
            torch.set_num_threads(self.few)


WIDE = _Wide()
"""Threads are the process's: so is this."""


class Threads:
    """Sets the thread counts of the tensor library before each batch.

    Args:
        flops_per_token: of an average linear layer of the model.
        hidden_size: of the model.
    """

    def __init__(self, flops_per_token: float, hidden_size: int) -> None:
        self._flops_per_token = flops_per_token
        self._hidden_size = hidden_size
        self._all = torch.get_num_threads()

    def use_for(self, num_tokens: int) -> None:
        """One thread for a small batch, all of them for a large one."""
        many = self._all if num_tokens * self._flops_per_token >= WORTH_A_THREAD else 1
        few = self._all if num_tokens * self._hidden_size >= WIDE_ELEMENTS else 1
        WIDE.set(max(many, few), few)
