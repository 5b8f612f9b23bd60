"""What a custom loss may take of memory and time for one datum, counted on shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mint.engine.graph_indexing import INDEXING
from mint.engine.graph_nodes import GraphNode
from mint.engine.graph_operations import equation_operands
from mint.errors import BadRequestError

# A loss may compare all tokens with all, up to 2048 × 2048 elements; and do some hundred things to each token.
SQUARE = 1 << 22
LARGEST_FIXED, LARGEST_PER_ELEMENT = 1 << 12, 64
SUM_FIXED, SUM_PER_ELEMENT, SUM_SQUARES = 1 << 16, 128, 8
READ_PER_ELEMENT_MADE = 3
MULTIPLICATIONS_PER_ELEMENT = 64
SORTING = 16
"""Elements whose reading takes as long as sorting one does."""


def _names(names: str, modules: str = "torch Tensor") -> frozenset[str]:
    return frozenset(f"{module}.{name}" for module in modules.split() for name in names.split())


BATCHED_PRODUCTS = _names("matmul", "torch Tensor operator")
INNER_PRODUCTS = BATCHED_PRODUCTS | _names("mm mv bmm dot vdot inner") | {"torch.nn.functional.linear"}
OUTER_PRODUCTS = _names("outer ger")
SORTS = _names("sort argsort msort topk kthvalue median nanmedian mode quantile nanquantile")
UNLIKE = INNER_PRODUCTS | OUTER_PRODUCTS | INDEXING.keys() | _names("einsum searchsorted bucketize")
"""Operations of several tensors that do not bring them to one shape."""


class Meter:
    """Counts elements and multiplications against what a datum with so many targets and so many inputs may take."""

    def __init__(self, targets: int, inputs: int) -> None:
        square = min(targets * targets, SQUARE)
        self._largest = LARGEST_FIXED + LARGEST_PER_ELEMENT * inputs + square
        self._sum = SUM_FIXED + SUM_PER_ELEMENT * inputs + SUM_SQUARES * square
        self._made = self._read = self._multiplied = 0

    @property
    def work(self) -> int:
        """Elements that have been gone through, and multiplications for what they take longer."""
        return self._read + self._multiplied // MULTIPLICATIONS_PER_ELEMENT

    def watch(self, node: GraphNode, args: Sequence[Any], value: Any) -> None:
        """Count what a node has made.

        Raises:
            BadRequestError: it is too much; names the limit.
        """
        copied, multiplied = _product_work(node, args, value)
        sizes = [tensor.numel() for tensor in _tensors(value)]
        inside = _brought_together(node, args)
        made = max(sum(sizes), inside) + copied
        self._made += made
        self._read += max(made, _read(node, args, value))
        self._multiplied += multiplied
        self._check(node, "makes a tensor of {} elements", max([copied, inside, *sizes]), self._largest)
        self._check(node, "brings all tensors to {} elements", self._made, self._sum)
        self._check(node, "brings all that is read to {} elements", self._read, READ_PER_ELEMENT_MADE * self._sum)
        most = MULTIPLICATIONS_PER_ELEMENT * self._sum
        self._check(node, "brings all products to {} multiplications", self._multiplied, most)

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


def _brought_together(node: GraphNode, args: Sequence[Any]) -> int:
    """Elements of the tensors that an operation brings to one shape; it need not return one that large."""
    shapes = [argument.shape for argument in args if isinstance(argument, Tensor)]
    if len(shapes) < 2 or node.operation in UNLIKE:
        return 0
    try:
        return math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return 0  # it takes them for something else


def _read(node: GraphNode, args: Sequence[Any], value: Any) -> int:
    """Elements of the largest argument, unless the result is a view or a part of it."""
    given = list(_tensors(args))
    if all(result._is_view() or any(result is tensor for tensor in given) for result in _tensors(value)):
        return 0
    largest = max((tensor.numel() for tensor in given), default=0)
    return largest * SORTING if node.operation in SORTS else largest


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
