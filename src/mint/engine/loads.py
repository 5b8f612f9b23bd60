"""What a datum's loss takes of a micro-batch, beside its tokens: micro-batches are cut so that a step stays short."""

from __future__ import annotations

import numpy as np
import torch

from mint.engine.core import Datum, ForwardBackward
from mint.engine.graph_runner import graph_work, input_shapes
from mint.errors import BadRequestError

PAIRS_PER_TOKEN = 64
"""Pairs of a token and a target for each token of the budget: less memory than the token's activations take."""

STEP_OPERATIONS = 1 << 13
"""Operations of custom losses in one micro-batch: some tenths of a second, however little each does."""

STEP_WORK = 1 << 27
"""Elements that they go through in one micro-batch: about a second of one processor core."""

PASS_WORK = 1 << 32
"""Elements that the custom loss of one pass may go through: about half a minute."""


def loss_load(command: ForwardBackward, datum: Datum, max_tokens: int) -> float:
    """The share of a micro-batch, 1 being all of it, that the loss of a datum takes."""
    pairs = datum.loss_inputs["target_tokens"].size / (PAIRS_PER_TOKEN * max_tokens)
    graph = command.loss_graph
    if graph is None:
        return pairs
    try:
        work = datum_work(command, datum)
    except BadRequestError:
        work = 0  # it is refused when its turn comes
    return max(pairs, len(graph.nodes) / STEP_OPERATIONS, work / STEP_WORK)


def datum_work(command: ForwardBackward, datum: Datum) -> int:
    """Elements that a custom loss goes through for a datum.

    Raises:
        BadRequestError: see `graph_work`.
    """
    assert command.loss_graph is not None
    inputs = {
        name: torch.empty(value.shape, dtype=torch.from_numpy(np.empty(0, value.dtype)).dtype, device="meta")
        for name, value in datum.loss_inputs.items()
    }
    logprobs = torch.empty(inputs["target_tokens"].shape, device="meta")
    return graph_work(command.loss_graph, input_shapes(command.loss_graph, logprobs, inputs))


def check_pass_work(work: int) -> None:
    """Refuse a pass whose custom loss goes through too many elements.

    Raises:
        BadRequestError: they are more than `PASS_WORK`.
    """
    if work > PASS_WORK:
        raise BadRequestError(
            f"the custom loss goes through more than {PASS_WORK} elements, the most of one pass; send fewer datums",
            field="data",
        )
