"""What the operations of a custom loss are: torch's own, some with checks of their own.

What would need a tensor's value for the shape of its output is refused here, and so are Python's numbers where they
could grow without bound; `mint.engine.graph_runner` bounds the rest.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from mint.engine.graph_indexing import INDEXING, MAX_PARTS
from mint.engine.loss_operations import OPERATIONS

Function: TypeAlias = Callable[..., Any]
Number: TypeAlias = bool | int | float

MAX_EXPONENT = 64
EQUATION = re.compile(r"[A-Za-z]*(,[A-Za-z]*)?(->[A-Za-z]*)?")
FIELDS = {"values", "indices", "min", "max"}
"""The results of `max`, `sort`, `aminmax` and the like have such names."""

MODULES: Mapping[str, object] = {
    "torch": torch,
    "torch.nn.functional": functional,
    "torch.special": torch.special,
    "torch.linalg": torch.linalg,
    "operator": operator,
    "math": math,
    "Tensor": Tensor,
}


# --- Python's numbers ---------------------------------------------------------------------------------------


def is_number(value: object) -> bool:
    """Whether it is one of Python's."""
    return isinstance(value, int | float)


def checked_number(value: object) -> Number:
    """A number that fits 64 bits: Python's whole numbers grow without bound.

    Raises:
        ValueError: it is none, or does not.
    """
    if isinstance(value, float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63):
        return value
    raise ValueError("its result is no number of 64 bits")


def _of_numbers(function: Function) -> Function:
    def apply(*numbers: Any) -> Any:
        if not all(map(is_number, numbers)):
            raise TypeError("takes Python's numbers; for tensors there are the functions of torch")
        return function(*numbers)

    return apply


def _of_tensors_or_numbers(function: Function) -> Function:
    def apply(*operands: Any) -> Any:
        if not all(isinstance(operand, Tensor) or is_number(operand) for operand in operands):
            raise TypeError("takes tensors and numbers")
        return function(*operands)

    return apply


def _add(left: Any, right: Any) -> Any:
    """Shapes are added too: x.shape[:-1] + (1,)."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        if len(left) + len(right) > MAX_PARTS:
            raise ValueError(f"makes a tuple of more than {MAX_PARTS} items")
        return (*left, *right)
    return _of_tensors_or_numbers(operator.add)(left, right)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"of whole numbers has an exponent of at most {MAX_EXPONENT}")
    return _of_tensors_or_numbers(operator.pow)(base, exponent)


# --- others -------------------------------------------------------------------------------------------------


def _where(condition: Tensor, input: Any, other: Any) -> Tensor:
    return torch.where(condition, input, other)


def _where_method(self: Tensor, condition: Tensor, other: Any) -> Tensor:
    return torch.where(condition, self, other)


def _divide(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    whole = not any(isinstance(o, float) or (isinstance(o, Tensor) and o.is_floating_point()) for o in (input, other))
    if rounding_mode == "trunc" and whole:
        # the smallest whole number divided so by -1 is a trap of the processor, which ends the process
        raise TypeError("takes no rounding_mode 'trunc' of whole numbers; 'floor' is allowed")
    return torch.div(input, other, rounding_mode=rounding_mode)


def _to(self: Tensor, *args: Any, dtype: torch.dtype | None = None, other: Tensor | None = None) -> Tensor:
    """Another dtype; devices are left alone."""
    for argument in (*args, other, dtype):
        if isinstance(argument, Tensor):
            self = self.to(argument.dtype)
        elif isinstance(argument, torch.dtype):
            self = self.to(argument)
    return self


def _repeat_interleave(input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    if type(repeats) is not int:
        raise TypeError("takes a whole number of repeats: its output's shape must not depend on values")
    return torch.repeat_interleave(input, repeats, dim)


def equation_operands(equation: object, *operands: Any) -> tuple[str, Sequence[Tensor]]:
    """The arguments of `einsum`: its equation without spaces, and one or two tensors.

    Raises:
        ValueError: they are something else, so that the work is not known.
    """
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    equation = equation.replace(" ", "") if isinstance(equation, str) else ""
    if not EQUATION.fullmatch(equation) or not 1 <= len(tensors) <= 2:
        raise ValueError("takes an equation of letters and one or two tensors")
    return equation, tensors


def _einsum(*arguments: Any) -> Tensor:
    equation, operands = equation_operands(*arguments)
    return torch.einsum(equation, *operands)


def _linalg_norm(input: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **dtype: Any) -> Any:
    matrix = input.ndim == 2 if dim is None else isinstance(dim, tuple | list) and len(dim) == 2
    if matrix and ord in (2, -2):
        raise ValueError("takes no singular values of a matrix; ord may be None, 'fro', ±1 or ±inf")
    return torch.linalg.norm(input, ord, dim, keepdim, **dtype)


def _quantile(function: Function) -> Function:
    def apply(input: Tensor, q: float, *args: Any, **kwargs: Any) -> Any:
        if not is_number(q):
            raise TypeError("takes one number for q")
        return function(input, float(q), *args, **kwargs)

    return apply


def _new_tensor(self: Tensor, data: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A constant."""

    def is_plain(entry: object) -> bool:
        return all(map(is_plain, entry)) if isinstance(entry, tuple | list) else is_number(entry)

    if not is_plain(data):
        raise TypeError("takes numbers, or lists of them")
    return self.new_tensor(data, dtype=dtype)


def get_attribute(value: Any, name: str) -> Any:
    """An attribute of a tensor, or of results with names.

    Raises:
        TypeError: it has none of this name.
    """
    if type(value).__module__ == "torch.return_types" and name in FIELDS:
        return getattr(value, name)
    if not isinstance(value, Tensor) or name in FIELDS:
        raise TypeError(f"there is no {name} of it")
    return value.detach() if name == "data" else getattr(value, name)


# --- the table ----------------------------------------------------------------------------------------------

OWN: Mapping[str, Function] = {
    **INDEXING,
    **dict.fromkeys(("torch.div", "torch.divide", "Tensor.div", "Tensor.divide"), _divide),
    **dict.fromkeys(("torch.repeat_interleave", "Tensor.repeat_interleave"), _repeat_interleave),
    **dict.fromkeys(("torch.quantile", "Tensor.quantile"), _quantile(torch.quantile)),
    **dict.fromkeys(("torch.nanquantile", "Tensor.nanquantile"), _quantile(torch.nanquantile)),
    "getattr": get_attribute,
    "operator.add": _add,
    "operator.pow": _power,
    "torch.where": _where,
    "Tensor.where": _where_method,
    "Tensor.to": _to,
    "Tensor.new_tensor": _new_tensor,
    "torch.einsum": _einsum,
    "torch.linalg.norm": _linalg_norm,
}


def _function(operation: str) -> Function:
    if operation in OWN:
        return OWN[operation]
    module, _, name = operation.rpartition(".")
    function: Function = getattr(MODULES[module], name)
    if module == "operator":
        return _of_tensors_or_numbers(function)
    return _of_numbers(function) if module == "math" else function


OPERATION_FUNCTIONS: Mapping[str, Function] = {name: _function(name) for name in ("getattr", *OPERATIONS)}
"""By the names of `OPERATIONS`; the names are ours, none comes from a client."""
