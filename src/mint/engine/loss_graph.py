"""A custom loss as a graph of tensor operations: what clients upload, checked against what is allowed.

Torch-free, so that the server refuses a bad graph before it is stored; `mint.engine.graph_runner` computes it. The
encoding is the SDK's: the nodes of a torch.fx graph in the order of their execution. Nothing of it is ever run as code
or looked up by name but in the tables of `mint.engine.loss_operations`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mint.engine.graph_nodes import MAX_NAME, ArgumentReader, GraphNode, RawNode, Ref, read_node, read_text, references
from mint.errors import BadRequestError

if TYPE_CHECKING:
    from mint.engine.core import Datum, LossInput

MAX_NODES, MAX_INPUTS, MAX_METRICS = 512, 16, 64
MAX_OPERATIONS = 1 << 18
"""Nodes times datums of one pass."""

INPUT_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
METRIC_NAME = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")


@dataclass(frozen=True)
class GraphInput:
    """An input by name; `rank` is how many dimensions it has in every datum."""

    name: str
    rank: int


@dataclass(frozen=True)
class GraphOutput:
    """The loss and the metrics, by the place of their values."""

    loss: Ref
    metrics: tuple[tuple[str, Ref], ...]


@dataclass(frozen=True)
class LossGraph:
    """A checked graph. Its values are the inputs, then what each node makes of those before it; `Ref`s count them all.

    The first input is `logprobs`, of the shape of the datum's target_tokens: (N,) or (N, K).
    """

    name: str
    inputs: tuple[GraphInput, ...]
    nodes: tuple[GraphNode, ...]
    output: GraphOutput

    @cached_property
    def digest(self) -> str:
        """The same for two graphs only if they compute the same (equality cannot tell 1 from 1.0 and True)."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def parse_loss_graph(name: str, inputs: object, graph: object) -> LossGraph:
    """Check an uploaded loss: `inputs` [{name, rank}], `graph` {format: 1, nodes: [{op, name, target, args, kwargs}]}.

    Raises:
        BadRequestError: something is not as it must be; names the field, the node and the limit.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise BadRequestError(f"must have 1 to {MAX_NAME} printable characters", field="name")
    known = _inputs(inputs)
    nodes = _raw_nodes(graph)
    where = [f"graph.nodes[{index}]" for index in range(len(nodes))]
    _check_placeholders(nodes[: len(known)], where, known)
    reader = ArgumentReader()
    for place, node in zip(where, nodes[: len(known)], strict=False):
        reader.define(read_text(node, "name", place), f"{place}.name")
    computed = []
    for place, node in zip(where[len(known) : -1], nodes[len(known) : -1], strict=True):
        computed.append(read_node(node, place, reader))
        reader.define(computed[-1].name, f"{place}.name")
    output = _output(nodes[-1], where[-1], reader)
    parsed = LossGraph(name, known, tuple(computed), output)
    _check_dependence(parsed, where[-1])
    return parsed


def _inputs(value: object) -> tuple[GraphInput, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS:
        raise BadRequestError(f"must be a list of 1 to {MAX_INPUTS} inputs", field="inputs")
    inputs = []
    for index, entry in enumerate(value):
        where = f"inputs[{index}]"
        name, rank = (entry.get("name"), entry.get("rank")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not INPUT_NAME.fullmatch(name):
            raise BadRequestError("must be a lowercase name of letters, digits and underscores", field=f"{where}.name")
        if type(rank) is not int or not 0 <= rank <= 2:
            raise BadRequestError(f"must be 0, 1 or 2, is {str(rank)[:20]}", field=f"{where}.rank")
        inputs.append(GraphInput(name, rank))
    names = [each.name for each in inputs]
    if len(set(names)) < len(names):
        raise BadRequestError("has a name twice", field="inputs")
    if names[0] != "logprobs" or not inputs[0].rank:
        raise BadRequestError("must be logprobs, of rank 1 or 2", field="inputs[0]")
    return tuple(inputs)


def _raw_nodes(graph: object) -> list[RawNode]:
    if not isinstance(graph, dict):
        raise BadRequestError("must be an object", field="graph")
    # True equals 1, and is none
    if type(graph.get("format", 1)) is not int or graph.get("format", 1) != 1:
        raise BadRequestError("must be 1, the one format this server reads", field="graph.format")
    nodes = graph.get("nodes")
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES:
        length = len(nodes) if isinstance(nodes, list) else "no"
        raise BadRequestError(f"has {length} nodes; it must have 1 to {MAX_NODES}", field="graph.nodes")
    for index, node in enumerate(nodes):
        where = f"graph.nodes[{index}]"
        if not isinstance(node, dict):
            raise BadRequestError("must be an object", field=where)
        if not isinstance(node.get("args", []), list) or not isinstance(node.get("kwargs", {}), dict):
            raise BadRequestError("must have a list of args and an object of kwargs", field=where)
    return nodes


def _check_placeholders(nodes: Sequence[RawNode], where: Sequence[str], inputs: Sequence[GraphInput]) -> None:
    names = [each.name for each in inputs]
    targets = [node.get("target") if node.get("op") == "placeholder" else None for node in nodes]
    if targets != names:
        raise BadRequestError(
            f"must begin with the placeholders of the inputs: {', '.join(names)}", field="graph.nodes"
        )
    for place, node in zip(where, nodes, strict=False):
        if node.get("args") or node.get("kwargs"):
            raise BadRequestError("is a placeholder, which has no arguments", field=place)


def _output(node: RawNode, where: str, reader: ArgumentReader) -> GraphOutput:
    if node.get("op") != "output":
        raise BadRequestError("must be the output, as the last node", field=f"{where}.op")
    args = node.get("args", [])
    pair = args[0] if len(args) == 1 else None
    if isinstance(pair, dict) and pair.keys() == {"tuple"}:
        pair = pair["tuple"]
    metrics = pair[1] if isinstance(pair, list) and len(pair) == 2 else None
    metrics = metrics.get("dict") if isinstance(metrics, dict) and metrics.keys() == {"dict"} else None
    if not isinstance(pair, list) or not isinstance(metrics, dict) or node.get("kwargs"):
        raise BadRequestError("must return (loss, metrics), metrics being a dict", field=f"{where}.args")
    if len(metrics) > MAX_METRICS:
        raise BadRequestError(f"has {len(metrics)} metrics; at most {MAX_METRICS} are taken", field=f"{where}.args")
    for name in metrics:
        if not METRIC_NAME.fullmatch(name):
            raise BadRequestError(
                f"metric {name[:100]!r} must be named custom/<name>:sum or custom/<name>:mean, <name> being 1 to 64 "
                "lowercase letters, digits and _./-",
                field=f"{where}.args",
            )
    loss = _reference(pair[0], f"{where}.args", "the loss", reader)
    return GraphOutput(
        loss, tuple((name, _reference(value, f"{where}.args", name, reader)) for name, value in metrics.items())
    )


def _reference(value: object, where: str, what: str, reader: ArgumentReader) -> Ref:
    found = reader.read(value, where)
    if not isinstance(found, Ref):
        raise BadRequestError(f"{what} must be a tensor that the graph computes", field=where)
    return found


def _check_dependence(graph: LossGraph, where: str) -> None:
    """Refuse a loss to which no path leads from the log-probabilities."""
    reached = {0}
    for place, node in enumerate(graph.nodes, start=len(graph.inputs)):
        arguments = (*node.args, *(value for _, value in node.kwargs))
        if any(ref.place in reached for ref in references(arguments)):
            reached.add(place)
    if graph.output.loss.place not in reached:
        raise BadRequestError("the loss does not depend on logprobs", field=f"{where}.args")


def check_custom_size(graph: LossGraph, data: int) -> None:
    """Refuse a pass of more operations than a request may have, however small each one is.

    Raises:
        BadRequestError: nodes times data are more than `MAX_OPERATIONS`.
    """
    most = MAX_OPERATIONS // max(len(graph.nodes), 1)
    if data > most:
        raise BadRequestError(
            f"has {data} datums; loss {graph.name!r} has {len(graph.nodes)} nodes, so a request takes at most {most}",
            field="data",
        )


def check_custom_inputs(index: int, datum: Datum, graph: LossGraph) -> dict[str, LossInput]:
    """What a graph reads of a datum beside the log-probabilities; inputs of rank 0 get the shape ().

    Raises:
        BadRequestError: an input is missing, has another rank than the graph declares, or is not finite.
    """
    inputs: dict[str, LossInput] = {}
    for each in graph.inputs:
        key = "target_tokens" if each.name == "logprobs" else each.name
        where = f"data[{index}].loss_fn_inputs.{key}"
        value = datum.loss_inputs.get(key)
        if value is None:
            raise BadRequestError(f"is missing; loss {graph.name!r} takes it", field=where, datum=index)
        if each.rank == 0 and value.size == 1:
            # on the wire a scalar looks like a vector of one
            value = value.reshape(())
        if value.ndim != each.rank:
            raise BadRequestError(
                f"has shape {tuple(value.shape)}; loss {graph.name!r} takes {each.name} with rank {each.rank}",
                field=where,
                datum=index,
            )
        if value.dtype not in (np.float32, np.int64):
            raise BadRequestError(f"must be float32 or int64, is {value.dtype}", field=where, datum=index)
        if each.name != "logprobs":
            _check_finite(value, where, index)
            inputs[key] = value
    return inputs


def _check_finite(value: LossInput, where: str, index: int) -> None:
    finite = np.isfinite(value)
    if not finite.all():
        place = int(np.argmin(finite))
        raise BadRequestError(f"is {value.reshape(-1)[place]} at position {place}", field=where, datum=index)
