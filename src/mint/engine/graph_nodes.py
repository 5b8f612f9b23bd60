"""The nodes of a custom loss and their arguments: the wire's JSON, checked, as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from mint.engine.loss_operations import ATTRIBUTES, DTYPES, OPERATIONS, TEXTS, Signature, public_name, reason_against
from mint.errors import BadRequestError

MAX_ARGUMENTS, MAX_DEPTH = 8192, 6
"""Of a whole graph, lists and their items counted; and how deep lists may nest."""

MAX_NAME, MAX_TEXT = 128, 64
"""Characters of a name, of a loss or a node; and of a string among the arguments."""

MUST_BE_OFF = frozenset({"out", "inplace", "size_average", "reduce", "requires_grad", "pin_memory", "sparse_grad"})
"""Keywords that tracing fills in with None or False; anything else is refused."""

MEANINGLESS = frozenset({"device", "layout", "memory_format", "non_blocking", "copy", "_stacklevel"})
"""Keywords that change no value here: all tensors are plain, and where the model is."""

NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Ref:
    """The value at a place: an input's, or a node's."""

    place: int


@dataclass(frozen=True)
class ListOf:
    """A list, which as an index is something else than a tuple."""

    items: tuple[Argument, ...]


@dataclass(frozen=True)
class SliceOf:
    """start:stop:step."""

    start: Argument
    stop: Argument
    step: Argument


@dataclass(frozen=True)
class DTypeOf:
    """A dtype by its name."""

    name: str


@dataclass(frozen=True)
class EllipsisOf:
    """An ellipsis, of an index."""


@dataclass(frozen=True)
class DeviceOf:
    """Any device: it stands for the one where the model is."""


Argument: TypeAlias = (
    bool | int | float | str | Ref | ListOf | SliceOf | DTypeOf | EllipsisOf | DeviceOf | tuple["Argument", ...] | None
)
RawNode: TypeAlias = dict[str, Any]


def references(argument: Argument) -> Iterator[Ref]:
    """All values that an argument refers to."""
    match argument:
        case Ref():
            yield argument
        case SliceOf(start, stop, step):
            yield from references((start, stop, step))
        case ListOf(items):
            yield from references(items)
        case tuple():
            for item in argument:
                yield from references(item)
        case _:
            pass


@dataclass(frozen=True)
class GraphNode:
    """One operation, by its public name as in `OPERATIONS`, or `getattr`; `field` is where the client wrote it."""

    name: str
    field: str
    operation: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]


class ArgumentReader:
    """Reads the arguments of one graph's nodes, in order, and counts them."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._count = 0

    def define(self, name: str, where: str) -> None:
        """From here on, a node's value can be referred to.

        Raises:
            BadRequestError: the name is none, or is taken.
        """
        if not NODE_NAME.fullmatch(name):
            raise BadRequestError(f"{name!r} must be an identifier", field=where)
        if name in self._places:
            raise BadRequestError(f"{name!r} names an earlier node already", field=where)
        self._places[name] = len(self._places)

    def read(self, value: Any, where: str, *, any_text: bool = False, depth: int = 0) -> Argument:
        """One encoded argument; `any_text` where a string need not be one of `TEXTS`.

        Raises:
            BadRequestError: it is none, refers to a node that is not before it, or goes beyond a limit.
        """
        self._count += 1
        if self._count > MAX_ARGUMENTS:
            raise BadRequestError(f"has more than {MAX_ARGUMENTS} arguments in sum", field="graph.nodes")
        if depth > MAX_DEPTH:
            raise BadRequestError(f"nests deeper than {MAX_DEPTH}", field=where)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return _number(value, where)
        if isinstance(value, str):
            return _string(value, where, any_text=any_text)
        if isinstance(value, list):
            return ListOf(tuple(self._items(value, where, depth)))
        if isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
            return self._tagged(kind, content, where, depth)
        raise BadRequestError("is no argument: a scalar, a list, or an object with one key", field=where)

    def _items(self, values: list[Any], where: str, depth: int) -> Iterator[Argument]:
        return (self.read(value, f"{where}[{i}]", depth=depth + 1) for i, value in enumerate(values))

    def _tagged(self, kind: str, content: Any, where: str, depth: int) -> Argument:
        if kind == "ref" and isinstance(content, str):
            if content not in self._places:
                raise BadRequestError(f"refers to {content[:MAX_TEXT]!r}, which is no earlier node", field=where)
            return Ref(self._places[content])
        if kind == "tuple" and isinstance(content, list):
            return tuple(self._items(content, where, depth))
        if kind == "slice" and isinstance(content, list) and len(content) == 3:
            return SliceOf(*self._items(content, where, depth))
        return _constant(kind, content, where)


def _constant(kind: str, content: Any, where: str) -> Argument:
    if kind == "ellipsis" and content is True:
        return EllipsisOf()
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "dtype" and isinstance(content, str) and content in DTYPES:
        return DTypeOf(content)
    if kind == "device" and isinstance(content, str):
        return DeviceOf()
    known = (
        f"dtypes are {', '.join(sorted(DTYPES))}" if kind == "dtype" else "kinds are ref, tuple, slice, float, dtype"
    )
    raise BadRequestError(f"{{{kind[:40]!r}: {str(content)[:40]!r}}} is no argument; {known}", field=where)


def _number(value: float, where: str) -> int | float:
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise BadRequestError("does not fit 64 bits", field=where)
    elif not math.isfinite(value):
        raise BadRequestError('is not finite; that is written {"float": "inf"}', field=where)
    return value


def _string(value: str, where: str, *, any_text: bool) -> str:
    if len(value) > MAX_TEXT or not (any_text or value in TEXTS):
        raise BadRequestError(
            f"{value[:MAX_TEXT]!r} is not one of the texts that operations take: {', '.join(sorted(TEXTS))}",
            field=where,
        )
    return value


def read_text(node: RawNode, key: str, where: str) -> str:
    """A text of a node, such as its name.

    Raises:
        BadRequestError: it is missing, too long, or not to be printed.
    """
    value = node.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise BadRequestError(f"must be a text of 1 to {MAX_NAME} printable characters", field=f"{where}.{key}")
    return value


def read_node(node: RawNode, where: str, reader: ArgumentReader) -> GraphNode:
    """One operation.

    Raises:
        BadRequestError: it is not allowed, or not with these arguments; `where` is the field it names.
    """
    name, target = read_text(node, "name", where), read_text(node, "target", where)
    raw_args, raw_kwargs = node.get("args", []), node.get("kwargs", {})
    operation = _operation(node.get("op"), target, where)
    if operation == "getattr":
        return GraphNode(name, where, operation, _attribute_arguments(raw_args, raw_kwargs, where, reader), ())
    signature = OPERATIONS[operation]
    if len(raw_args) > signature.positional:
        raise BadRequestError(
            f"{operation} takes at most {signature.positional} positional arguments here, {len(raw_args)} are given",
            field=f"{where}.args",
        )
    equation = operation == "torch.einsum"
    args = tuple(
        reader.read(arg, f"{where}.args[{i}]", any_text=(equation and i == 0) or operation == "Tensor.to")
        for i, arg in enumerate(raw_args)
    )
    if operation.startswith("Tensor.") and not (args and isinstance(args[0], Ref)):
        raise BadRequestError("must have the method's tensor as its first argument", field=f"{where}.args")
    return GraphNode(name, where, operation, args, _keywords(raw_kwargs, operation, signature, where, reader))


def _operation(op: object, target: str, where: str) -> str:
    """The public name of what a node calls."""
    if op not in ("call_function", "call_method"):
        raise BadRequestError(
            f"is {str(op)[:40]!r}; after the placeholders come call_function and call_method, and at last one output",
            field=f"{where}.op",
        )
    if op == "call_function" and target in ("getattr", "builtins.getattr"):
        return "getattr"
    name = public_name(target) if op == "call_function" else f"Tensor.{target}"
    if name not in OPERATIONS or (op == "call_function" and name.startswith("Tensor.")):
        raise BadRequestError(
            f"{name} is not allowed in a custom loss: {reason_against(name)}", field=f"{where}.target"
        )
    return name


def _attribute_arguments(
    args: list[Any], kwargs: dict[str, Any], where: str, reader: ArgumentReader
) -> tuple[Argument, ...]:
    if len(args) != 2 or kwargs:
        raise BadRequestError("getattr takes a value and the name of an attribute", field=where)
    name = args[1]
    if not isinstance(name, str) or name not in ATTRIBUTES:
        allowed = ", ".join(sorted(ATTRIBUTES))
        raise BadRequestError(
            f"attribute {str(name)[:40]!r} is not allowed; allowed are {allowed}", field=f"{where}.args[1]"
        )
    value = reader.read(args[0], f"{where}.args[0]")
    if not isinstance(value, Ref):
        raise BadRequestError("must refer to a node", field=f"{where}.args[0]")
    return value, name


def _keywords(
    raw: dict[str, Any], operation: str, signature: Signature, where: str, reader: ArgumentReader
) -> tuple[tuple[str, Argument], ...]:
    kwargs = []
    for key, value in raw.items():
        place = f"{where}.kwargs.{key[:40]}"
        if key in signature.keywords or (key == "input" and operation.startswith("torch.")):
            kwargs.append((key, reader.read(value, place)))
        elif key in MUST_BE_OFF:
            if value is not None and value is not False:
                raise BadRequestError("must be left out, or None or False", field=place)
        elif key not in MEANINGLESS:
            known = ", ".join(sorted(signature.keywords)) or "none"
            raise BadRequestError(f"{operation} takes no such keyword here; it takes {known}", field=place)
    return tuple(kwargs)
