"""What custom losses may take: bombs are refused on their shapes alone, ordinary losses are not."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mint.engine.graph_runner import run_graph
from mint.engine.loss_operations import OPERATIONS
from mint.errors import BadRequestError
from tests.engine.custom_losses import LossFunction, uploaded
from tests.engine.test_graph_runner import LOGPROBS, refusal, sum_of


def column_and_row(x: Any) -> tuple[Any, Any]:
    """Two tensors that are small, and large together."""
    long = x.repeat(700)
    return long[:, None], long.detach()[None, :]


def loss_of_column_and_row(name: str) -> Callable[[Any], Any]:
    return lambda x: getattr(F, name)(*column_and_row(x))


def again_and_again(count: int, tensor: Any, reduced: Callable[[Any], Any]) -> Any:
    """What is read so often is made once."""
    return sum((reduced(tensor) for _ in range(count)), 0.0)


BOMBS: dict[str, Callable[[Any], Any]] = {
    "expand": lambda x: x[:, None, None].expand(-1, 100_000, 100_000) * x[0],
    "repeat": lambda x: x.repeat(100_000_000),
    "repeat_interleave": lambda x: x.repeat_interleave(1 << 40),
    "factories": lambda x: x[0] * torch.zeros(x.shape[0] * 10**9),
    "arange": lambda x: x[0] * torch.arange(0, x.shape[0], 1e-12),
    "linspace": lambda x: x[0] * torch.linspace(0, x.shape[0], 10**12),
    "new_zeros": lambda x: x.new_zeros(100_000, 100_000) * x[0],
    "eye": lambda x: torch.eye(x.shape[0] * 100_000) * x[0],
    "outer again and again": lambda x: reduce(lambda a, _: torch.outer(a, a).flatten(), range(6), x),
    "doubling": lambda x: reduce(lambda a, _: torch.cat([a, a]), range(40), x),
    "meshgrid": lambda x: torch.meshgrid(*[x] * 12, indexing="ij")[0],
    "overflowing sizes": lambda x: torch.meshgrid(*[x.repeat(100)] * 16, indexing="ij")[0],
    "pad": lambda x: F.pad(x, (1 << 40, 0)),
    "one_hot": lambda x: x[0] * F.one_hot(x.long() + 3, 1 << 40),
    "unfold": lambda x: x.repeat(1000).unfold(0, 3000, 1),
    "einsum": lambda x: torch.einsum("i,j->ij", x.repeat(1000), x.repeat(1000)),
    "broadcast": lambda x: reduce(lambda a, _: a[..., None] * a, range(4), x.repeat(20)),
    "parts": lambda x: x.repeat(100).unbind(0)[0],
    "split": lambda x: x.repeat(100).split(1)[0],
    "chunk": lambda x: x.repeat(100).chunk(600)[0],
    "many small tensors": lambda x: sum((x.repeat(900) for _ in range(200)), x[0]),
    "a batched product written out": lambda x: x.repeat(40).reshape(1, 60, 4) @ x.repeat(80).reshape(120, 4, 1),
    "integers": lambda x: x * reduce(lambda a, _: a * a, range(30), x.shape[0]),
    "powers": lambda x: x * (x.shape[0] ** (10**9)),
    "powers of powers": lambda x: x * reduce(lambda a, _: a**64, range(30), x.shape[0]),
    "shapes": lambda x: x.reshape(reduce(lambda a, _: a + a, range(40), x.shape)),
}


def weighted(x: Any, **weight: Any) -> Any:
    column, row = column_and_row(x)
    return F.binary_cross_entropy_with_logits(column, column.detach().sigmoid(), **dict.fromkeys(weight, row))


REDUCED = "mse_loss l1_loss smooth_l1_loss huber_loss kl_div soft_margin_loss poisson_nll_loss hinge_embedding_loss"
HIDDEN_BOMBS: dict[str, Callable[[Any], Any]] = {
    **{name: loss_of_column_and_row(name) for name in REDUCED.split()},
    "margin_ranking_loss": lambda x: F.margin_ranking_loss(*column_and_row(x), x.detach()[:1, None]),
    "a weight of another shape": lambda x: weighted(x, weight=True),
    "a weight of positives": lambda x: weighted(x, pos_weight=True),
    "cosine_similarity": lambda x: torch.cosine_similarity(*column_and_row(x), dim=1),
    "cosine_similarity along the other": lambda x: F.cosine_similarity(*column_and_row(x), dim=0),
    "sums": lambda x: again_and_again(200, x.repeat(700), lambda t: t.sum()),
    "quantiles": lambda x: again_and_again(20, x.repeat(600), lambda t: t.quantile(0.1)),
}
"""What returns little, of a lot that it makes or reads."""


@pytest.mark.parametrize("name", [*BOMBS, *HIDDEN_BOMBS])
def test_a_bomb_is_refused_before_it_takes_anything(name: str) -> None:
    graph = uploaded(sum_of((BOMBS | HIDDEN_BOMBS)[name]))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(BadRequestError) as caught:
        run_graph(graph, LOGPROBS, {})
    assert time.perf_counter() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert caught.value.field.startswith("graph.nodes[")
    assert name in BOMBS or "for this datum at most" in str(caught.value)


def test_every_loss_that_brings_two_tensors_together_is_among_the_bombs() -> None:
    losses = {name.rpartition(".")[2] for name in OPERATIONS if name.endswith("_loss")}
    assert losses <= HIDDEN_BOMBS.keys()


def test_what_two_tensors_make_together_within_bounds_is_allowed() -> None:
    """A pairwise loss, and operations whose arguments are of different shapes for other reasons."""
    x = torch.linspace(-3, -0.1, 2000)
    run_graph(uploaded(sum_of(lambda x: F.mse_loss(x[:, None].expand(-1, 2000), x.expand(2000, -1)))), x, {})
    run_graph(uploaded(sum_of(lambda x: F.l1_loss(x[:, None], x.detach()[None, :]))), x, {})
    many = torch.linspace(-3, -0.1, 9000)
    losses: list[LossFunction] = [
        lambda logprobs, matrix: ((logprobs[None, :] @ logprobs[:, None]).sum(), {}),
        lambda logprobs, matrix: (logprobs[torch.zeros_like(matrix, dtype=torch.int64)[:, 0]].sum(), {}),
        lambda logprobs, matrix: (logprobs[0] * torch.bucketize(matrix, logprobs.detach().sort()[0]).sum(), {}),
    ]
    for loss in losses:
        run_graph(uploaded(loss, matrix=2), many, {"matrix": torch.zeros(9000, 1)})


def test_products_are_bounded() -> None:
    many = torch.linspace(-3, -0.1, 2000)
    square = sum_of(lambda x: x[:, None] * x)
    run_graph(uploaded(square), many, {})
    error = refusal(sum_of(lambda x: (x[:, None] * x) @ (x[:, None] * x)), many)
    assert "multiplications" in str(error)
    # the same work as an equation
    error = refusal(sum_of(lambda x: torch.einsum("ij,jk->ik", x[:, None] * x, x[:, None] * x)), many)
    assert "multiplications" in str(error)


def test_what_is_allowed_grows_with_the_datum() -> None:
    pairs = uploaded(sum_of(lambda x: (x[:, None] - x).abs()))
    for length in (1, 10, 300, 2048):
        run_graph(pairs, torch.linspace(-3, -0.1, length), {})
    with pytest.raises(BadRequestError, match="at most"):
        run_graph(pairs, torch.linspace(-3, -0.1, 4000), {})
    long = uploaded(sum_of(lambda x: reduce(lambda a, _: torch.tanh(a), range(100), x)))
    for length in (1, 10_000, 300_000):
        run_graph(long, torch.linspace(-3, -0.1, length), {})
