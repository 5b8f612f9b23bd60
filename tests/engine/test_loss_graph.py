"""What an uploaded graph is refused for, and that the refusal names the field."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mint.engine.core import Datum, ForwardBackward, ModelInfo
from mint.engine.graph_nodes import Ref
from mint.engine.graph_runner import run_graph
from mint.engine.loss_graph import (
    MAX_NODES,
    MAX_OPERATIONS,
    GraphInput,
    LossGraph,
    check_custom_inputs,
    parse_loss_graph,
)
from mint.engine.loss_operations import OPERATIONS
from mint.engine.loss_specs import check_forward_backward
from mint.errors import BadRequestError

from .custom_losses import encoded, uploaded

MODEL = ModelInfo("some/model", "", "Some", 50, 10, 10, (2,), 32, 1000)


def example(logprobs: Any, advantages: Any, beta: Any) -> Any:
    """Nodes 3 to 6 are torch.clamp, operator.mul, Tensor.sum, operator.getitem."""
    clipped = torch.clamp(logprobs, min=-2.0)
    loss = (clipped * advantages).sum()
    return loss * beta, {"custom/first:mean": clipped[0:1].mean()}


RANKS = {"advantages": 1, "beta": 0}
INPUTS, GRAPH = encoded(example, **RANKS)
NODES = [node["name"] for node in GRAPH["nodes"]]
CLAMP, MUL, SUM, OUTPUT = 3, 4, 5, len(NODES) - 1


def refusal(inputs: Any = INPUTS, graph: Any = GRAPH, name: str = "example") -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        parse_loss_graph(name, inputs, graph)
    return caught.value


def changed(index: int, **fields: Any) -> dict[str, Any]:
    """The graph with another node in one place."""
    graph = copy.deepcopy(GRAPH)
    graph["nodes"][index].update(fields)
    return graph


def test_what_the_sdk_sends_is_read() -> None:
    assert NODES[CLAMP : SUM + 1] == ["clamp", "mul", "sum_1"]
    graph = parse_loss_graph("example", INPUTS, GRAPH)
    assert graph.inputs == (GraphInput("logprobs", 1), GraphInput("advantages", 1), GraphInput("beta", 0))
    assert [node.operation for node in graph.nodes] == [
        "torch.clamp",
        "operator.mul",
        "Tensor.sum",
        "operator.mul",
        "operator.getitem",
        "Tensor.mean",
    ]
    assert graph.nodes[0].args == (Ref(0),)
    assert graph.nodes[0].kwargs == (("min", -2.0),)
    assert graph.nodes[1].args == (Ref(3), Ref(1))
    assert graph.output.loss == Ref(6)
    assert graph.output.metrics == (("custom/first:mean", Ref(8)),)


def test_a_graph_is_plain_data() -> None:
    graph = parse_loss_graph("example", INPUTS, GRAPH)
    again = pickle.loads(pickle.dumps(graph))
    assert (again, hash(again), again.digest) == (graph, hash(graph), graph.digest)
    other = parse_loss_graph("example", INPUTS, changed(CLAMP, kwargs={"min": -2}))
    assert other == graph
    assert other.digest != graph.digest


def test_every_kind_of_argument_is_read() -> None:
    def loss(logprobs: Any) -> Any:
        picked = logprobs[..., None, 1:-1:2]
        joined = torch.cat((picked.sum()[None], logprobs[[0, 1]]))
        wide = joined.to(torch.float64).to("cpu").clamp(max=float("inf"), min=float("-inf"))
        like = torch.zeros_like(wide, device=logprobs.device, memory_format=torch.preserve_format)
        return (F.relu(wide, inplace=False) + like).sum() + logprobs.sum(), {}

    value, _ = run_graph(uploaded(loss), torch.tensor([-1.0, -2.0, -3.0, 4.0]), {})
    assert float(value) == -2.0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("inputs", "field", "named"),
    [
        (None, "inputs", "1 to 16"),
        ([], "inputs", "1 to 16"),
        ([{"name": f"x{i}", "rank": 1} for i in range(17)], "inputs", "1 to 16"),
        ([INPUTS[0], INPUTS[1], "beta"], "inputs[2].name", "lowercase"),
        ([INPUTS[0], {"name": "Advantages", "rank": 1}, INPUTS[2]], "inputs[1].name", "lowercase"),
        ([INPUTS[0], {"name": "x" * 65, "rank": 1}, INPUTS[2]], "inputs[1].name", "lowercase"),
        ([INPUTS[0], INPUTS[1], {"name": "beta", "rank": 3}], "inputs[2].rank", "0, 1 or 2, is 3"),
        ([INPUTS[0], INPUTS[1], {"name": "beta", "rank": True}], "inputs[2].rank", "is True"),
        ([INPUTS[0], INPUTS[1], {"name": "beta"}], "inputs[2].rank", "is None"),
        ([INPUTS[0], INPUTS[1], INPUTS[1]], "inputs", "twice"),
        ([INPUTS[1], INPUTS[0], INPUTS[2]], "inputs[0]", "logprobs"),
        ([{"name": "logprobs", "rank": 0}, *INPUTS[1:]], "inputs[0]", "rank 1 or 2"),
        ([INPUTS[0], INPUTS[2], INPUTS[1]], "graph.nodes", "placeholders of the inputs: logprobs, beta, advantages"),
        ([INPUTS[0]], "graph.nodes[1].op", "placeholder"),
    ],
)
def test_inputs(inputs: Any, field: str, named: str) -> None:
    error = refusal(inputs=inputs)
    assert (error.field, named in str(error)) == (field, True), error


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\ud800"])
def test_names_of_losses(name: str) -> None:
    assert refusal(name=name).field == "name"


@pytest.mark.parametrize(
    ("graph", "field"),
    [
        (None, "graph"),
        ([], "graph"),
        ({"format": 2, "nodes": GRAPH["nodes"]}, "graph.format"),
        ({"format": True, "nodes": GRAPH["nodes"]}, "graph.format"),
        ({"format": 1}, "graph.nodes"),
        ({"nodes": []}, "graph.nodes"),
        ({"nodes": {}}, "graph.nodes"),
        ({"nodes": [*GRAPH["nodes"][:-1]]}, "graph.nodes[8].op"),
        ({"nodes": GRAPH["nodes"][:2]}, "graph.nodes"),
        ({"nodes": GRAPH["nodes"][:3]}, "graph.nodes[2].op"),
        ({"nodes": [*GRAPH["nodes"], GRAPH["nodes"][-1]]}, "graph.nodes[9].op"),
        ({"nodes": [*GRAPH["nodes"][:3], 1, *GRAPH["nodes"][3:]]}, "graph.nodes[3]"),
        (changed(0, args=[0.0]), "graph.nodes[0]"),
        (changed(CLAMP, args={}), "graph.nodes[3]"),
        (changed(CLAMP, kwargs=[]), "graph.nodes[3]"),
        (changed(CLAMP, name=1), "graph.nodes[3].name"),
        (changed(CLAMP, name=""), "graph.nodes[3].name"),
        (changed(CLAMP, name="a b"), "graph.nodes[3].name"),
        (changed(CLAMP, name="x" * 129), "graph.nodes[3].name"),
        (changed(CLAMP, name="logprobs"), "graph.nodes[3].name"),
        (changed(MUL, name="clamp"), "graph.nodes[4].name"),
        (changed(1, name="logprobs"), "graph.nodes[1].name"),
        (changed(CLAMP, target=None), "graph.nodes[3].target"),
    ],
)
def test_structure(graph: Any, field: str) -> None:
    error = refusal(graph=graph)
    assert error.field == field, error


def test_too_many_nodes() -> None:
    middle = [{**GRAPH["nodes"][CLAMP], "name": f"clamp_{i}"} for i in range(MAX_NODES)]
    error = refusal(graph={"nodes": [*GRAPH["nodes"][:-1], *middle, GRAPH["nodes"][-1]]})
    assert (error.field, f"1 to {MAX_NODES}" in str(error)) == ("graph.nodes", True)
    most = MAX_NODES - len(NODES)
    graph = {"nodes": [*GRAPH["nodes"][:-1], *middle[:most], GRAPH["nodes"][-1]]}
    assert len(parse_loss_graph("x", INPUTS, graph).nodes) == MAX_NODES - 4


FUNCTIONS = [
    "os.system",
    "eval",
    "builtins.eval",
    "builtins.exec",
    "__import__",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "torch.ops.load_library",
    "torch.compile",
    "torch.set_default_dtype",
    "torch.manual_seed",
    "torch.cuda.empty_cache",
    "torch._C._cuda_init",
    "torch.autograd.grad",
    "torch.from_file",
    "torch.as_strided",
    "torch.tensor_split",
    "torch.nn.functional.dropout",
    "torch.nn.functional.binary_cross_entropy",
    "torch.nn.functional.embedding",
    "torch.nn.functional.cross_entropy",
    "torch.Tensor.exp",
    "Tensor.exp",
    "Tensor.sum",
    "torch.classes",
    "torch.__builtins__",
    "torch.exp.__call__",
    "torch.functional.os",
    "torch..exp",
    "torch.",
    ".exp",
    "exp",
    "math.factorial",
    "math.comb",
    "operator.setitem",
    "operator.iadd",
    "operator.attrgetter",
    "operator.methodcaller",
    "operator.mul\x00",
    "setattr",
    "_operator._operator.mul",
]
METHODS = [
    "item",
    "tolist",
    "numpy",
    "backward",
    "register_hook",
    "requires_grad_",
    "set_",
    "resize_",
    "share_memory_",
    "data_ptr",
    "storage",
    "untyped_storage",
    "cuda",
    "cpu",
    "__class__",
    "__reduce_ex__",
    "__dict__",
    "__setitem__",
    "__getattribute__",
    "apply_",
    "map_",
    "add_",
    "clamp_",
    "zero_",
    "bernoulli",
    "normal_",
    "nonzero",
    "masked_select",
    "unique",
    "new_empty",
    "as_strided",
    "type",
    "exp.__call__",
    "",
]


@pytest.mark.parametrize("target", FUNCTIONS)
def test_other_functions(target: str) -> None:
    error = refusal(graph=changed(MUL, target=target))
    assert error.field == "graph.nodes[4].target"


@pytest.mark.parametrize("target", METHODS)
def test_other_methods(target: str) -> None:
    error = refusal(graph=changed(SUM, target=target))
    assert error.field == "graph.nodes[5].target"


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x: x * torch.rand_like(x), "random"),
        (F.dropout, "random"),
        (lambda x: x.nonzero(), "use torch.where"),
        (torch.unique_consecutive, "use torch.where"),
        (lambda x: torch.empty_like(x) * x, "use zeros"),
        (lambda x: x.clamp_(min=-1), "in place; use clamp"),
        (lambda x: x.cpu(), "leaves torch"),
        (torch.trapezoid, "not on the list"),
    ],
)
def test_a_refused_operation_has_a_reason(compute: Callable[[Any], Any], reason: str) -> None:
    inputs, graph = encoded(lambda logprobs: (compute(logprobs).sum(), {}))
    error = refusal(inputs=inputs, graph=graph)
    assert (error.field, reason in str(error)) == ("graph.nodes[1].target", True), error


@pytest.mark.parametrize("op", ["get_attr", "call_module", "output", "placeholder", None, 1])
def test_other_kinds_of_nodes(op: Any) -> None:
    assert refusal(graph=changed(MUL, op=op)).field == "graph.nodes[4].op"


@pytest.mark.parametrize(
    "args",
    [
        ["logprobs", "shape"],
        [{"ref": "logprobs"}, "__class__"],
        [{"ref": "logprobs"}, "grad_fn"],
        [{"ref": "logprobs"}, "grad"],
        [{"ref": "logprobs"}, {"ref": "beta"}],
        [{"ref": "logprobs"}, ["shape"]],
        [{"ref": "logprobs"}],
        [{"ref": "logprobs"}, "shape", None],
        [{"ref": "mul"}, "shape"],
    ],
)
def test_attributes(args: list[Any]) -> None:
    error = refusal(graph=changed(MUL, target="getattr", args=args))
    assert str(error.field).startswith("graph.nodes[4]")


NESTED: Any = 1
for _ in range(8):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ({"ref": "nobody"}, "no earlier node"),
        ({"ref": "mul"}, "no earlier node"),
        ({"ref": "sum_1"}, "no earlier node"),
        ({"ref": ["clamp"]}, "no argument"),
        ({"ref": "clamp", "tuple": []}, "one key"),
        ({}, "one key"),
        ({"code": "1 + 1"}, "no argument"),
        ({"dict": {"a": 1}}, "no argument"),
        ({"slice": [0, 1]}, "no argument"),
        ({"slice": [0, 1, {"ref": "mul"}]}, "no earlier node"),
        ({"ellipsis": 1}, "no argument"),
        ({"ellipsis": False}, "no argument"),
        ({"float": "1.0"}, "no argument"),
        ({"float": []}, "no argument"),
        ({"device": ["cpu"]}, "no argument"),
        ({"dtype": "complex64"}, "dtypes are"),
        ({"dtype": "__class__"}, "dtypes are"),
        ({"dtype": []}, "dtypes are"),
        ({"layout": "strided"}, "no argument"),
        ("nuc", "not one of the texts"),
        ("x" * 65, "not one of the texts"),
        (1 << 63, "64 bits"),
        (-(1 << 63) - 1, "64 bits"),
        (float("inf"), "not finite"),
        (float("nan"), "not finite"),
        (NESTED, "nests deeper than 6"),
        ([0] * 8192, "8192 arguments"),
        ([[0] * 91] * 91, "8192 arguments"),
    ],
)
def test_arguments(argument: Any, named: str) -> None:
    for changes in ({"args": [{"ref": "clamp"}, argument]}, {"args": [[argument], 1]}):
        error = refusal(graph=changed(MUL, **changes))
        assert str(error.field).startswith("graph.nodes"), error
        assert named in str(error), error


@pytest.mark.parametrize(
    ("index", "changes", "field"),
    [
        (MUL, {"args": [1, 2, 3]}, "graph.nodes[4].args"),
        (MUL, {"kwargs": {"input": 1}}, "graph.nodes[4].kwargs.input"),
        (CLAMP, {"kwargs": {"out": {"ref": "logprobs"}}}, "graph.nodes[3].kwargs.out"),
        (CLAMP, {"kwargs": {"out": 0}}, "graph.nodes[3].kwargs.out"),
        (CLAMP, {"kwargs": {"requires_grad": True}}, "graph.nodes[3].kwargs.requires_grad"),
        (CLAMP, {"kwargs": {"generator": None}}, "graph.nodes[3].kwargs.generator"),
        (CLAMP, {"target": "torch.nn.functional.relu", "kwargs": {"inplace": True}}, "graph.nodes[3].kwargs.inplace"),
        (CLAMP, {"target": "torch.nn.functional.relu", "args": [{"ref": "logprobs"}, True]}, "graph.nodes[3].args"),
        (SUM, {"args": []}, "graph.nodes[5].args"),
        (SUM, {"args": [1.0]}, "graph.nodes[5].args"),
        (SUM, {"args": [[{"ref": "mul"}]]}, "graph.nodes[5].args"),
    ],
)
def test_calls(index: int, changes: dict[str, Any], field: str) -> None:
    assert refusal(graph=changed(index, **changes)).field == field


LOSS = {"ref": "mul_1"}


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (LOSS, "(loss, metrics)"),
        ({"tuple": [LOSS]}, "(loss, metrics)"),
        ({"tuple": [LOSS, {"dict": {}}, 1]}, "(loss, metrics)"),
        ({"tuple": [LOSS, []]}, "(loss, metrics)"),
        ({"tuple": [LOSS, {"dict": []}]}, "(loss, metrics)"),
        ({"tuple": [1.0, {"dict": {}}]}, "the loss must be a tensor"),
        ({"tuple": [{"ref": "beta"}, {"dict": {}}]}, "does not depend on logprobs"),
        ({"tuple": [{"ref": "advantages"}, {"dict": {}}]}, "does not depend on logprobs"),
        ({"tuple": [{"ref": "output"}, {"dict": {}}]}, "no earlier node"),
        ({"tuple": [LOSS, {"dict": {"custom/a:sum": 1.0}}]}, "custom/a:sum must be a tensor"),
        ({"tuple": [LOSS, {"dict": {"loss:sum": LOSS}}]}, "must be named custom/"),
        ({"tuple": [LOSS, {"dict": {"custom/a:max": LOSS}}]}, "must be named custom/"),
        ({"tuple": [LOSS, {"dict": {"custom/A:sum": LOSS}}]}, "must be named custom/"),
        ({"tuple": [LOSS, {"dict": {"custom/a:sum\n": LOSS}}]}, "must be named custom/"),
        ({"tuple": [LOSS, {"dict": {"custom/:sum": LOSS}}]}, "must be named custom/"),
        ({"tuple": [LOSS, {"dict": {f"custom/{'a' * 65}:sum": LOSS}}]}, "must be named custom/"),
        ({"tuple": [LOSS, {"dict": {f"custom/{i}:sum": LOSS for i in range(65)}}]}, "at most 64"),
    ],
)
def test_outputs(output: Any, named: str) -> None:
    error = refusal(graph=changed(OUTPUT, args=[output]))
    assert (error.field, named in str(error)) == (f"graph.nodes[{OUTPUT}].args", True), error


def test_metrics_at_the_limit() -> None:
    names = [f"custom/{'a' * 64}:sum", "custom/a_.-/0:mean", *(f"custom/{i}:sum" for i in range(62))]
    graph = changed(OUTPUT, args=[[LOSS, {"dict": dict.fromkeys(names, LOSS)}]])
    assert [name for name, _ in parse_loss_graph("x", INPUTS, graph).output.metrics] == names


# ---------------------------------------------------------------- anything at all

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*NODES, "shape", "torch.exp", "call_method", "mean", *sorted(OPERATIONS)[::20]])
    | st.builds(lambda name: {"ref": name}, st.sampled_from(NODES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tuple", "slice", "dict", "ref", "dtype", "float", "dim"]), inner, max_size=2
        )
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = copy.copy(value)
    copied[path[0]] = put(value[path[0]], path[1:], new)
    return copied


@given(st.lists(st.tuples(st.integers(0, 10_000), JSON_VALUES), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_whatever_comes_is_read_or_refused(changes: list[tuple[int, Any]]) -> None:
    """And what is read is computed or refused."""
    document: Any = {"inputs": INPUTS, "graph": GRAPH}
    for number, value in changes:
        paths = places(document)
        document = put(document, paths[number % len(paths)], value)
    if not isinstance(document, dict):
        return
    inputs = {"advantages": torch.tensor([1.0, -1.0, 0.5]), "beta": torch.tensor(0.5)}
    with suppress(BadRequestError):
        graph = parse_loss_graph("example", document.get("inputs"), document.get("graph"))
        run_graph(graph, torch.tensor([-1.0, -2.0, -3.0]), inputs)


# ---------------------------------------------------------------- a pass with a custom loss


def a_pass(graph: LossGraph, **changes: Any) -> ForwardBackward:
    """Two datums; the second one is changed."""
    good = {
        "target_tokens": np.arange(3),
        "advantages": np.array([1, 2, 3], np.float32),
        "beta": np.array([0.5], np.float32),
        "unread": np.zeros((2, 2), np.float32),
    }
    changed = {name: value for name, value in {**good, **changes}.items() if value is not None}
    tokens = np.arange(3, dtype=np.int32)
    return ForwardBackward("run", (Datum(tokens, good), Datum(tokens, changed)), "custom", loss_graph=graph)


def test_a_datum_has_what_the_graph_reads() -> None:
    graph = parse_loss_graph("example", INPUTS, GRAPH)
    for beta in (np.array([0.5], np.float32), np.array(0.5, np.float32), np.array([[2]])):
        checked = check_forward_backward(a_pass(graph, beta=beta), MODEL)
        assert checked.loss_graph is graph
        inputs = checked.data[1].loss_inputs
        assert inputs.keys() == {"target_tokens", "advantages", "beta"}
        assert inputs["beta"].shape == ()
        assert float(inputs["beta"]) == float(beta.item())


def test_integers_stay_integers() -> None:
    graph = uploaded(lambda logprobs, mask: ((logprobs * mask).sum(), {}), mask=1)
    datum = Datum(np.arange(3, dtype=np.int32), {"target_tokens": np.arange(3), "mask": np.array([0, 1, 1])})
    assert check_custom_inputs(0, datum, graph)["mask"].dtype == np.int64


def test_the_targets_themselves_are_an_input() -> None:
    graph = uploaded(lambda logprobs, target_tokens: ((logprobs * target_tokens).sum(), {}), target_tokens=1)
    (datum, _) = check_forward_backward(a_pass(graph), MODEL).data
    assert datum.loss_inputs.keys() == {"target_tokens"}


@pytest.mark.parametrize(
    ("changes", "field", "named"),
    [
        ({"advantages": None}, "advantages", "missing; loss 'example' takes it"),
        ({"beta": None}, "beta", "missing"),
        (
            {"advantages": np.ones((3, 1), np.float32)},
            "advantages",
            "shape (3, 1); loss 'example' takes advantages with rank 1",
        ),
        ({"beta": np.ones(2, np.float32)}, "beta", "with rank 0"),
        ({"beta": np.ones(0, np.float32)}, "beta", "with rank 0"),
        ({"beta": np.array([np.inf], np.float32)}, "beta", "is inf at position 0"),
        ({"advantages": np.array([1, 2, np.nan], np.float32)}, "advantages", "is nan at position 2"),
        ({"advantages": np.ones(3, np.float64)}, "advantages", "float32 or int64"),
        ({"target_tokens": np.ones((3, 2), np.int64)}, "target_tokens", "takes logprobs with rank 1"),
        ({"target_tokens": None}, "target_tokens", "missing"),
    ],
)
def test_a_datum_that_lacks_something(changes: dict[str, Any], field: str, named: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check_forward_backward(a_pass(parse_loss_graph("example", INPUTS, GRAPH), **changes), MODEL)
    error = caught.value
    assert (error.field, error.datum) == (f"data[1].loss_fn_inputs.{field}", 1)
    assert named in str(error), error


def test_a_pass_has_so_many_operations_at_most() -> None:
    middle = [{**GRAPH["nodes"][CLAMP], "name": f"clamp_{i}"} for i in range(MAX_NODES - len(NODES))]
    graph = parse_loss_graph("long", INPUTS, {"nodes": [*GRAPH["nodes"][:-1], *middle, GRAPH["nodes"][-1]]})
    most = MAX_OPERATIONS // len(graph.nodes)
    (datum, _) = a_pass(graph).data
    check_forward_backward(ForwardBackward("run", (datum,) * most, "custom", loss_graph=graph), MODEL)
    with pytest.raises(BadRequestError, match=f"takes at most {most}") as caught:
        check_forward_backward(ForwardBackward("run", (datum,) * (most + 1), "custom", loss_graph=graph), MODEL)
    assert caught.value.field == "data"
