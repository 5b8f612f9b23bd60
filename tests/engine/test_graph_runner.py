"""Custom losses against the same functions in plain torch; and what is refused before it costs anything."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mint.engine import graph_runner
from mint.engine.graph_runner import run_graph
from mint.engine.loss_operations import OPERATIONS
from mint.errors import BadRequestError

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


# ---------------------------------------------------------------- what a loss may be


def sum_of(compute: Callable[[Any], Any]) -> LossFunction:
    return lambda logprobs: (compute(logprobs).sum(), {})


def test_without_gradients_there_is_only_the_value() -> None:
    graph = uploaded(lambda logprobs: (logprobs.exp().sum(), {"custom/n:mean": logprobs.shape[0]}))
    with torch.no_grad():
        loss, metrics = run_graph(graph, LOGPROBS.clone().requires_grad_(), {})
    assert not loss.requires_grad
    torch.testing.assert_close(loss, LOGPROBS.exp().sum())
    assert metrics["custom/n:mean"] == 6.0


def test_single_precision_stays_single_precision() -> None:
    graph = uploaded(lambda logprobs, other: ((logprobs * other).sum(), {}), other=1)
    leaf = LOGPROBS.float().requires_grad_()
    loss, _ = run_graph(graph, leaf, {"other": INPUTS["other"].float()})
    loss.backward()
    assert (loss.dtype, leaf.grad.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(leaf.grad, INPUTS["other"].float())


def test_log_probabilities_in_columns() -> None:
    """Of K targets for each position."""

    def loss(logprobs: Any, matrix: Any) -> Any:
        return -(matrix * logprobs.log_softmax(dim=-1)).sum(), {"custom/rows:sum": logprobs.logsumexp(1).sum()}

    inputs = {"matrix": INPUTS["matrix"]}
    assert_computes(uploaded(loss, logprobs=2, matrix=2), loss, -INPUTS["matrix"].exp(), inputs)


def test_inputs_stay_as_they_are() -> None:
    def loss(logprobs: Any, other: Any) -> Any:
        total = logprobs.sum()
        total += other.sum()
        total *= 2
        return total, {"custom/other:sum": other.abs().sum()}

    leaf, other = LOGPROBS.clone(), INPUTS["other"].clone()
    run_graph(uploaded(loss, other=1), leaf, {"other": other, "unread": other})
    assert torch.equal(leaf, LOGPROBS)
    assert torch.equal(other, INPUTS["other"])


def test_a_published_loss() -> None:
    """PPO's clipped surrogate with an entropy-like bonus and a KL penalty, as one would write it."""

    def loss(logprobs: Any, other: Any, index: Any) -> Any:
        mask = (index > 0).to(logprobs.dtype)
        ratio = torch.exp(logprobs - other.clamp(max=-0.1))
        clipped = torch.clamp(ratio, 0.8, 1.2)
        advantages = (other - other.mean()) / (other.std() + 1e-6)
        surrogate = -torch.minimum(ratio * advantages, clipped * advantages)
        kl = F.smooth_l1_loss(logprobs, other, reduction="none", beta=0.5)
        loss = ((surrogate + 0.1 * kl) * mask).sum() / mask.sum().clamp(min=1)
        return loss, {
            "custom/clipped:mean": ((ratio - clipped).abs() > 1e-9).float().mean(),
            "custom/kl:sum": (kl * mask).sum(),
        }

    inputs = {"other": INPUTS["other"], "index": INPUTS["index"]}
    assert_computes(uploaded(loss, other=1, index=1), loss, LOGPROBS, inputs)


STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "exp": lambda a, b: torch.exp(a.clamp(max=1.0)),
    "tanh": lambda a, b: torch.tanh(a),
    "add": lambda a, b: a + 0.5 * b,
    "mul": lambda a, b: a * b,
    "where": lambda a, b: torch.where(a > b, a, b * 0.5),
    "cumsum": lambda a, b: a.cumsum(0) / 6,
    "softmax": lambda a, b: torch.softmax(a, 0) * b.shape[0],
    "sort": lambda a, b: a.sort()[0],
    "flip": lambda a, b: a.flip(0),
    "shift": lambda a, b: torch.cat([a[1:], b[:1]]),
    "centre": lambda a, b: a - a.mean(),
    "outer": lambda a, b: (torch.outer(a, b) @ a) / 6,
    "detach": lambda a, b: a + b.detach(),
    "slice": lambda a, b: F.pad(a[::2], (0, a.shape[0] // 2)),
    "huber": lambda a, b: F.huber_loss(a, b, reduction="none"),
    "clip": lambda a, b: torch.clamp(a, -1.5, 1.5),
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)
)
@settings(max_examples=60, deadline=None)
def test_any_program_of_such_steps(program: list[tuple[str, int, int]]) -> None:
    def loss(logprobs: Any, other: Any) -> Any:
        values = [logprobs, other]
        for name, first, second in program:
            values.append(STEPS[name](values[first % len(values)], values[second % len(values)]))
        return sum(value.mean() for value in values), {"custom/last:sum": values[-1].sum()}

    graph = uploaded(loss, other=1)
    assert_computes(pickle.loads(pickle.dumps(graph)), loss, LOGPROBS, {"other": INPUTS["other"]})


# ---------------------------------------------------------------- what is refused


def refusal(
    loss: LossFunction, logprobs: Tensor = LOGPROBS, /, ranks: dict[str, int] | None = None, **inputs: Tensor
) -> Any:
    graph = uploaded(loss, **(ranks or {}))
    with pytest.raises(BadRequestError) as caught:
        run_graph(graph, logprobs, inputs)
    return caught.value


@pytest.mark.parametrize(
    ("compute", "named"),
    [
        (lambda x: x + x[:3], ("'add'", "operator.add", "broadcast")),
        (lambda x: x.reshape(4, 2), ("'reshape'", "Tensor.reshape", "invalid for input of size 6")),
        (lambda x: x.softmax(3), ("'softmax'", "Dimension out of range")),
        (lambda x: x[9], ("'getitem'", "out of")),
        (lambda x: x[x > -1], ("'getitem'", "torch.where")),
        (lambda x: x[0, 0], ("'getitem'", "2 indices for 1 dimensions")),
        (lambda x: x[True], ("'getitem'", "no bool for an index")),
        (lambda x: x[[9]], ("'getitem'", "dimension of size 6")),
        (lambda x: x[: x.argmax()], ("'getitem'", "whose value is not known")),
        (lambda x: x.unsqueeze(0)[0, x.argmax()], ("'getitem'", "take_along_dim")),
        (lambda x: x[torch.full_like(x, 6, dtype=torch.int64)], ("'getitem'", "index 6 is out of range", "size 6")),
        (lambda x: x[torch.full_like(x, -7, dtype=torch.int64)], ("'getitem'", "index -7 is out of range")),
        (lambda x: x[x], ("'getitem'", "int64 or int32")),
        (lambda x: x.gather(0, torch.full_like(x, -1, dtype=torch.int64)), ("'gather'", "index -1 is out of range")),
        (lambda x: x.index_select(0, x.long() + 9), ("'index_select'", "out of range")),
        (lambda x: x.scatter(0, x.long() - 1, 1.0) * x, ("'scatter'", "out of range")),
        (lambda x: x.scatter_add(0, x.long() + 8, x), ("'scatter_add'", "out of range")),
        (lambda x: x.index_add(0, x.long() + 8, x), ("'index_add'", "out of range")),
        (lambda x: x.take(x.long() + 8), ("'take'", "out of range")),
        (lambda x: torch.take_along_dim(x, x.long() + 8), ("'take_along_dim'", "out of range")),
        (lambda x: x * F.one_hot(x.long() + 3, 2)[:, 0], ("'one_hot'", "out of range")),
        (lambda x: x * F.one_hot(x.long())[:, 0], ("'one_hot'", "num_classes")),
        (lambda x: x.repeat_interleave(x.long()), ("'repeat_interleave'", "must not depend on values")),
        (lambda x: torch.where(x > 0)[0] * x, ("'where'", "missing")),
        (lambda x: x * math.sqrt(x.sum()), ("'sqrt'", "functions of torch")),
        (lambda x: x.quantile(x[:1]), ("'quantile'", "one number for q")),
        (lambda x: x.new_tensor([x.sum()]) * x, ("'new_tensor'", "takes numbers")),
        (lambda x: torch.einsum("...i,i->", x, x), ("'einsum'", "equation of letters")),
        (lambda x: torch.linalg.norm(torch.outer(x, x), 2), ("'linalg_norm'", "singular values")),
        (lambda x: x.shape[0].unsqueeze(0) * x, ("'unsqueeze'", "doesn't apply")),
        (lambda x: x.shape + x, ("'add'", "takes tensors and numbers")),
        (lambda x: x.values, ("'getattr_1'", "there is no values")),
        (lambda x: x * (x.shape[0] // 0), ("'floordiv'", "by zero")),
        (lambda x: x * math.exp(x.shape[0] * 1e3), ("'exp'", "range error")),
        (lambda x: x * (-x.shape[0]) ** 0.5, ("'pow_1'", "no number of 64 bits")),
        (lambda x: x * torch.div(x.long() + -(2**63), -1, rounding_mode="trunc"), ("'div'", "whole numbers")),
        (lambda x: x * x.long().divide(-1, rounding_mode="trunc"), ("'divide'", "whole numbers")),
        (lambda x: torch.inner(x, x.sum()).repeat(10**9), ("'repeat'", "at most")),
        (lambda x: x.max(dim=0) * 2, ("'mul'", "takes tensors and numbers")),
    ],
)
def test_an_operation_that_fails_is_named(compute: Callable[[Any], Any], named: tuple[str, ...]) -> None:
    error = refusal(sum_of(compute))
    assert all(part in str(error) for part in named), error
    assert error.field.startswith("graph.nodes[")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logprobs: (logprobs, {}), r"must be a scalar .*is a torch.float64 tensor of shape \(6,\)"),
        (lambda logprobs: (logprobs.sum().long(), {}), "floating-point"),
        (lambda logprobs: (logprobs.shape[0], {}), "floating-point dtype, is 6"),
        (lambda logprobs: ((logprobs.sum() * 1e308) * 1e308, {}), "must be finite, is -inf"),
        (lambda logprobs: ((logprobs - logprobs).log().sum(), {}), "must be finite, is -inf"),
        (lambda logprobs: ((logprobs[1:] - logprobs[1:]).sqrt().sum(), {}), "gradient is nan at position 1"),
        (lambda logprobs: (logprobs.detach().sum(), {}), "does not depend on logprobs"),
        (lambda logprobs: (torch.ones_like(logprobs).requires_grad_().sum(), {}), "not allowed"),
        (lambda logprobs: ((logprobs // 1.0).sum(), {}), "no gradient: derivative for aten::floor_divide"),
        (
            lambda logprobs: (logprobs.sum(), {"custom/x:sum": logprobs}),
            r"metric custom/x:sum must be a scalar, has shape",
        ),
        (
            lambda logprobs: (logprobs.sum(), {"custom/x:sum": logprobs.shape}),
            "metric custom/x:sum must be a scalar, is a Size",
        ),
    ],
)
def test_a_loss_that_is_none(loss: LossFunction, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        run_graph(uploaded(loss), LOGPROBS, {})


def test_a_missing_input_is_named() -> None:
    error = refusal(lambda logprobs, other: ((logprobs * other).sum(), {}), ranks={"other": 1})
    assert error.field == "loss_fn_inputs.other"


def test_shapes_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = uploaded(sum_of(lambda x: x * 2.125))
    devices: list[str] = []
    evaluate = graph_runner._evaluate
    monkeypatch.setattr(
        graph_runner, "_evaluate", lambda g, i, *w: devices.append(i[0].device.type) or evaluate(g, i, *w)
    )
    for length in (3, 3, 4, 3):
        run_graph(pickle.loads(pickle.dumps(graph)), torch.full((length,), -1.0), {})
    assert devices == ["meta", "cpu", "cpu", "meta", "cpu", "cpu"]


def test_graphs_that_compare_equal_are_told_apart() -> None:
    """1 equals True, but x[1] is a number and x[True] is refused."""
    one, true = (uploaded(sum_of(lambda x, k=k: x[k])) for k in (1, True))
    assert one == true
    run_graph(one, LOGPROBS, {})
    with pytest.raises(BadRequestError, match="bool"):
        run_graph(true, LOGPROBS, {})
