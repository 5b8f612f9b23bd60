"""Computes a custom loss for one datum.

First on shapes alone (torch's meta device, which holds no numbers), to refuse a graph whose tensors or products are too
large for the datum before any memory is taken; then on the numbers. The gradient with respect to the log-probabilities
is computed at once, so that a graph's tensors live no longer than its datum's turn, and whatever is wrong with it is
told of that datum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mint.engine.graph_nodes import Argument, DeviceOf, DTypeOf, EllipsisOf, GraphNode, ListOf, Ref, SliceOf
from mint.engine.graph_operations import OPERATION_FUNCTIONS, checked_number, equation_operands, is_number
from mint.engine.loss_graph import LossGraph
from mint.engine.loss_operations import DTYPES, FACTORIES
from mint.errors import BadRequestError

# A loss may compare all tokens with all, up to 2048 × 2048 elements; and do some hundred things to each token.
SQUARE = 1 << 22
LARGEST_FIXED, LARGEST_PER_ELEMENT = 1 << 12, 64
SUM_FIXED, SUM_PER_ELEMENT, SUM_SQUARES = 1 << 16, 128, 8
MULTIPLICATIONS_PER_ELEMENT = 64
REMEMBERED = 1 << 14
"""Graphs with shapes of their inputs that are remembered to have passed."""

FATAL = (torch.OutOfMemoryError, torch.AcceleratorError)
"""Not the graph's fault, or not to be survived."""
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError, AssertionError)

DTYPE_OF = {name: getattr(torch, name) for name in DTYPES}
BATCHED_PRODUCTS = {"operator.matmul", "torch.matmul", "Tensor.matmul"}
INNER_PRODUCTS = {"torch.nn.functional.linear"} | BATCHED_PRODUCTS
INNER_PRODUCTS |= {
    f"{module}.{name}" for module in ("torch", "Tensor") for name in ("mm", "mv", "bmm", "dot", "vdot", "inner")
}
OUTER_PRODUCTS = {f"{module}.{name}" for module in ("torch", "Tensor") for name in ("outer", "ger")}

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
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in (logprobs, *others))
    _check_shapes(graph, shapes)
    with_gradient = torch.is_grad_enabled()
    leaf = logprobs.detach().requires_grad_(with_gradient)
    values = _evaluate(graph, [leaf, *others])
    loss = _loss(values[graph.output.loss.place])
    metrics = {name: _metric(name, values[ref.place]) for name, ref in graph.output.metrics}
    if not with_gradient:
        return loss, metrics
    known: Tensor = _KnownGradient.apply(logprobs, loss.detach(), _gradient(loss, leaf))  # type: ignore[no-untyped-call]
    return known, metrics


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
            watch(node, args, value)
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


_passed: set[tuple[str, Shapes]] = set()


def _check_shapes(graph: LossGraph, shapes: Shapes) -> None:
    """Run a graph on the shapes of its inputs alone."""
    if (graph.digest, shapes) in _passed:
        return
    inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in shapes]
    meter = _Meter(inputs[0].numel(), sum(tensor.numel() for tensor in inputs))
    with torch.no_grad():
        values = _evaluate(graph, inputs, meter.watch)
    _loss(values[graph.output.loss.place])
    for name, ref in graph.output.metrics:
        _metric(name, values[ref.place])
    if len(_passed) >= REMEMBERED:
        _passed.clear()
    _passed.add((graph.digest, shapes))


class _Meter:
    """Counts elements and multiplications against what a datum with so many targets and so many inputs may take."""

    def __init__(self, targets: int, inputs: int) -> None:
        square = min(targets * targets, SQUARE)
        self._largest = LARGEST_FIXED + LARGEST_PER_ELEMENT * inputs + square
        self._sum = SUM_FIXED + SUM_PER_ELEMENT * inputs + SUM_SQUARES * square
        self._multiplications = MULTIPLICATIONS_PER_ELEMENT * self._sum
        self._elements = 0
        self._multiplied = 0

    def watch(self, node: GraphNode, args: Sequence[Any], value: Any) -> None:
        """Count what a node has made.

        Raises:
            BadRequestError: it is too much; names the limit.
        """
        copied, multiplied = _product_work(node, args, value)
        sizes = [tensor.numel() for tensor in _tensors(value)]
        self._elements += sum(sizes) + copied
        self._multiplied += multiplied
        self._check(node, "makes a tensor of {} elements", max([copied, *sizes]), self._largest)
        self._check(node, "brings all tensors to {} elements", self._elements, self._sum)
        self._check(node, "brings all products to {} multiplications", self._multiplied, self._multiplications)

    def _check(self, node: GraphNode, does: str, count: int, limit: int) -> None:
        if count > limit:
            text = f"{does.format(count)}; for this datum at most {limit} are allowed"
            raise BadRequestError(f"node {node.name!r}, {node.operation}: {text}", field=node.field)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _product_work(node: GraphNode, args: Sequence[Any], result: Any) -> tuple[int, int]:
    """Elements that a product copies before it begins, and its multiplications."""
    if node.operation == "torch.einsum":
        equation, operands = equation_operands(*args)
        letters = equation.partition("->")[0].replace(",", "")
        lengths = zip(letters, (size for operand in operands for size in operand.shape), strict=True)
        # the sizes of a letter are equal, or 1
        return 0, math.prod({letter: size for letter, size in lengths if size != 1}.values())
    if node.operation in OUTER_PRODUCTS:
        return 0, result.numel()
    if node.operation not in INNER_PRODUCTS:
        return 0, 0
    left, right = args[:2]
    inner = left.shape[-1] if left.ndim and right.ndim else 1
    copied = 0
    if node.operation in BATCHED_PRODUCTS and max(left.ndim, right.ndim) > 2:
        # where one of the two is shared by a batch, it is written out for each
        rows = left.shape[-2] if left.ndim > 1 else 1
        columns = right.shape[-1] if right.ndim > 1 else 1
        copied = result.numel() // max(rows * columns, 1) * (rows + columns) * inner
    return copied, result.numel() * inner
