"""Custom losses against the same functions in plain torch; and what is refused before it costs anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mint.engine.loss_operations import OPERATIONS

from .custom_loss_cases import CASES, Case
from .custom_losses import LossFunction, assert_computes, uploaded

LOGPROBS = torch.tensor([-0.3, -1.2, -0.7, -2.1, -0.05, -1.6], dtype=torch.float64)
INPUTS = {
    "other": torch.tensor([0.6, -0.4, 1.3, 0.2, -1.1, 0.9], dtype=torch.float64),
    "matrix": torch.arange(18, dtype=torch.float64).reshape(6, 3).cos(),
    "index": torch.tensor([3, 1, 0, 5, 2, 2]),
    "scalar": torch.tensor(0.25, dtype=torch.float64),
}
RANKS = {"other": 1, "matrix": 2, "index": 1, "scalar": 0}


def loss_of(case: Case) -> LossFunction:
    """A loss that a case's result, of any shape and dtype, is part of."""

    def loss(logprobs: Any, other: Any, matrix: Any, index: Any, scalar: Any) -> Any:
        result = logprobs.mean() * case(logprobs, other, matrix, index, scalar) * scalar
        return result.double().sum() + (logprobs * other).sum(), {"custom/result:sum": result.sum()}

    return loss


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_what_it_is_in_torch(name: str) -> None:
    loss = loss_of(CASES[name])
    assert_computes(uploaded(loss, **RANKS), loss, LOGPROBS, INPUTS)


def test_every_operation_has_a_case() -> None:
    used = {node.operation for case in CASES.values() for node in uploaded(loss_of(case), **RANKS).nodes}
    assert used == {*OPERATIONS, "getattr"}
