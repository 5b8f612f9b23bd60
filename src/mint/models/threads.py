"""How many threads a batch is worth.

Threads that wait for each other between two operations must either spin, which ruins everyone's speed as soon as
another program wants the cores, or sleep, which costs tens of microseconds at every operation. Workers sleep
(`OMP_WAIT_POLICY`), so a batch whose products are smaller than what a wake-up costs runs on one thread.
"""

from __future__ import annotations

import torch

WORTH_A_THREAD = 30_000_000
"""Floating-point operations of an average product; one thread does as many in about a millisecond."""


class Threads:
    """Sets the thread count of the tensor library before each batch.

    Args:
        flops_per_token: of an average linear layer of the model.
    """

    def __init__(self, flops_per_token: float) -> None:
        self._flops_per_token = flops_per_token
        self._all = torch.get_num_threads()

    def use_for(self, num_tokens: int) -> None:
        """One thread for a small batch, all of them for others."""
        wanted = self._all if num_tokens * self._flops_per_token >= WORTH_A_THREAD else 1
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
