"""Computes a custom loss for one datum.

First on shapes alone (torch's meta device, which holds no numbers), to refuse a graph whose tensors or products are too
large for the datum before any memory is taken; then on the numbers. The gradient with respect to the log-probabilities
is computed at once, so that a graph's tensors live no longer than its datum's turn, and whatever is wrong with it is
told of that datum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mint.engine.graph_limits import Meter
from mint.engine.graph_nodes import Argument, DeviceOf, DTypeOf, EllipsisOf, GraphNode, ListOf, Ref, SliceOf
from mint.engine.graph_operations import OPERATION_FUNCTIONS, checked_number, is_number
from mint.engine.loss_graph import LossGraph
from mint.engine.loss_operations import DTYPES, FACTORIES
from mint.errors import BadRequestError

REMEMBERED = 1 << 14
"""Graphs with shapes of their inputs whose work is remembered."""

FATAL = (torch.OutOfMemoryError, torch.AcceleratorError)
"""Not the graph's fault, or not to be survived."""
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError, AssertionError)

DTYPE_OF = {name: getattr(torch, name) for name in DTYPES}

Shapes: TypeAlias = tuple[tuple[tuple[int, ...], torch.dtype], ...]

Watch: TypeAlias = Callable[[GraphNode, Sequence[Any], Any], None]


def run_graph(graph: LossGraph, logprobs: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the metrics of one datum.

    Args:
        logprobs: floating point, (N,) or (N, K).
        inputs: the others by name, those that the graph does not read left aside.

    Returns:
        The loss, a scalar through which gradients flow to `logprobs` if gradients are enabled; and metrics, float64
        scalars without gradient.

    Raises:
        BadRequestError: an operation fails or is too large; or the loss is no finite scalar, has no finite gradient, or
            does not depend on `logprobs`. Names the node.
    """
    others = [_input(inputs, each.name).detach() for each in graph.inputs[1:]]
    graph_work(graph, input_shapes(graph, logprobs, inputs))
    with_gradient = torch.is_grad_enabled()
    leaf = logprobs.detach().requires_grad_(with_gradient)
    values = _evaluate(graph, [leaf, *others])
    loss = _loss(values[graph.output.loss.place])
    metrics = {name: _metric(name, values[ref.place]) for name, ref in graph.output.metrics}
    if not with_gradient:
        return loss, metrics
    known: Tensor = _KnownGradient.apply(logprobs, loss.detach(), _gradient(loss, leaf))  # type: ignore[no-untyped-call]
    return known, metrics


def input_shapes(graph: LossGraph, logprobs: Tensor, inputs: Mapping[str, Tensor]) -> Shapes:
    """Of what the graph reads; see `run_graph`.

    Raises:
        BadRequestError: an input is missing.
    """
    tensors = (logprobs, *(_input(inputs, each.name) for each in graph.inputs[1:]))
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


def _input(inputs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in inputs:
        raise BadRequestError("is missing", field=f"loss_fn_inputs.{name}")
    return inputs[name]


def _refuse(message: str) -> BadRequestError:
    return BadRequestError(message, field="graph.output")


def _loss(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        what = f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise _refuse(f"the loss must be a scalar of a floating-point dtype, is {what[:100]}")
    if not value.is_meta and not torch.isfinite(value):
        raise _refuse(f"the loss must be finite, is {value.item()}")
    return value


def _metric(name: str, value: Any) -> Tensor:
    if is_number(value):
        return torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
        raise _refuse(f"metric {name} must be a scalar, {what}")
    return value.detach().reshape(()).double()


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise _refuse("the loss does not depend on logprobs")
    try:
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    except FATAL:
        raise
    except FAILURES as error:
        raise _refuse(f"the loss has no gradient: {_first_line(error)}") from error
    if gradient is None:
        raise _refuse("the loss does not depend on logprobs")
    finite = torch.isfinite(gradient).flatten()
    if not finite.all():
        place = int(finite.int().argmin())
        value = float(gradient.flatten()[place])
        raise _refuse(
            f"the loss is finite, but its gradient is {value} at position {place}: an operation such as sqrt, log or a "
            "division is at the edge of where it is defined"
        )
    return gradient


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradient has been computed already."""

    @staticmethod
    def forward(ctx: Any, logprobs: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(gradient.dtype), None, None


# --- evaluation ---------------------------------------------------------------------------------------------


def _evaluate(graph: LossGraph, inputs: Sequence[Tensor], watch: Watch | None = None) -> list[Any]:
    """All values of a graph: the inputs, then the nodes'."""
    values: list[Any] = list(inputs)
    device = inputs[0].device
    for node in graph.nodes:
        try:
            args = [_resolve(argument, values, device) for argument in node.args]
            kwargs = {name: _resolve(argument, values, device) for name, argument in node.kwargs}
            if node.operation in FACTORIES:
                kwargs["device"] = device
            value = _checked(OPERATION_FUNCTIONS[node.operation](*args, **kwargs))
        except FATAL:
            raise
        except FAILURES as error:
            raise _failure(node, error) from error
        if watch is not None:
            watch(node, [*args, *kwargs.values()], value)
        values.append(value)
    return values


def _checked(value: Any) -> Any:
    known = isinstance(value, Tensor | tuple | list | torch.dtype | torch.device)
    return value if known else checked_number(value)


def _failure(node: GraphNode, error: Exception) -> BadRequestError:
    text = _first_line(error)
    if "meta tensor" in text or "nonzero" in text:
        text = "it takes a number where a tensor is given, whose value is not known when shapes are settled"
    return BadRequestError(f"node {node.name!r}, {node.operation}: {text}", field=node.field)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _resolve(argument: Argument, values: Sequence[Any], device: torch.device) -> Any:
    resolved: Any = argument
    match argument:
        case Ref(place):
            resolved = values[place]
        case tuple():
            resolved = tuple(_resolve(item, values, device) for item in argument)
        case ListOf(items):
            resolved = [_resolve(item, values, device) for item in items]
        case SliceOf(start, stop, step):
            resolved = slice(*(_resolve(bound, values, device) for bound in (start, stop, step)))
        case DTypeOf(name):
            resolved = DTYPE_OF[name]
        case EllipsisOf():
            resolved = Ellipsis
        case DeviceOf():
            resolved = device
    return resolved


# --- limits -------------------------------------------------------------------------------------------------


_work: dict[tuple[str, Shapes], int] = {}


def graph_work(graph: LossGraph, shapes: Shapes) -> int:
    """Elements that a graph goes through for inputs of these shapes, logprobs first; it is run on shapes alone.

    Raises:
        BadRequestError: an operation fails or is too large, or what comes out is no loss. Names the node.
    """
    key = graph.digest, shapes
    if key not in _work:
        inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in shapes]
        meter = Meter(inputs[0].numel(), sum(tensor.numel() for tensor in inputs))
        with torch.no_grad():
            values = _evaluate(graph, inputs, meter.watch)
        _loss(values[graph.output.loss.place])
        for name, ref in graph.output.metrics:
            _metric(name, values[ref.place])
        if len(_work) >= REMEMBERED:
            _work.clear()
        _work[key] = meter.work
    return _work[key]
