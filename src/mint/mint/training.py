"""Operations of MinT's own on a training client of the SDK.

Each returns the SDK's `APIFuture` at once, for `.result()` or `await`, and takes its place among the client's other
calls: what is called later is carried out later, whether or not anything was waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mint.client.submission import submit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from tinker import APIFuture, TrainingClient, types

    Tokens: TypeAlias = types.ModelInput | Sequence[int]
    Vector: TypeAlias = Sequence[float] | types.TensorData | npt.NDArray[np.floating[Any] | np.integer[Any]]


@dataclass(frozen=True, eq=False)
class ReverseKLDatum:
    """A sequence as the student sees it and as the reference does.

    The last N positions of both inputs predict the N `target_tokens`; in front of them the inputs may differ, as when
    the reference has seen a hint. `weights` (N,) multiply the divergence at each position; None is all ones.
    """

    student_input: Tokens
    reference_input: Tokens
    target_tokens: Vector
    weights: Vector | None = None


@dataclass(frozen=True)
class ReverseKLOutput:
    """`losses`: Σ w · KL(student ‖ reference) of each datum; `metrics` of the pass."""

    losses: tuple[float, ...]
    metrics: dict[str, float]


def forward_backward_reverse_kl(
    training_client: TrainingClient,
    data: Sequence[ReverseKLDatum],
    reference_model_path: str | None = None,
    temperature: float = 1.0,
) -> APIFuture[ReverseKLOutput]:
    """Add gradients that draw the run towards a reference: those of the reverse KL over the whole vocabulary.

    Args:
        reference_model_path: a checkpoint of the same base model, for training or for sampling. None is the base model.
        temperature: of both distributions.

    Raises:
        TypeError, ValueError: the data cannot be sent as numbers. Whatever the server refuses, the future raises.
    """
    request = {
        "data": [_reverse_kl_datum(datum) for datum in data],
        "reference_model_path": reference_model_path,
        "temperature": float(temperature),
    }

    def read(answer: dict[str, Any]) -> ReverseKLOutput:
        return ReverseKLOutput(tuple(output["loss"]["data"][0] for output in answer["outputs"]), answer["metrics"])

    return submit(training_client, "mint/forward_backward_reverse_kl", request, dict, read)


def train_step(
    training_client: TrainingClient,
    data: Sequence[types.Datum],
    loss_fn: str,
    adam_params: types.AdamParams,
    loss_fn_config: Mapping[str, float | str] | None = None,
) -> APIFuture[types.ForwardBackwardOutput]:
    """`forward_backward` and `optim_step` as one operation: both are carried out, or neither.

    The metrics are those of the pass and, as `optim/grad_norm:unique` and the like, those of the step. All data go in
    one request, so the server's limit on a request is the limit on a step.

    Raises:
        TypeError, ValueError: a setting is neither a number nor text, or the parameters are those of another optimizer
            than Adam. What the server refuses, the future raises.
    """
    from tinker import types  # noqa: PLC0415

    if not isinstance(adam_params, types.AdamParams):
        raise TypeError(f"adam_params must be AdamParams, is {type(adam_params).__name__}")
    config = {name: value if isinstance(value, str) else float(value) for name, value in (loss_fn_config or {}).items()}
    content = {"data": [_datum(datum) for datum in data], "loss_fn": loss_fn, "loss_fn_config": config}
    request = {"forward_backward_input": content, "adam_params": adam_params.model_dump()}
    return submit(training_client, "train_step", request, types.ForwardBackwardOutput, lambda output: output)


def _datum(datum: types.Datum) -> dict[str, Any]:
    inputs = {name: _tensor(value) for name, value in datum.loss_fn_inputs.items()}
    return {"model_input": datum.model_input.model_dump(mode="json"), "loss_fn_inputs": inputs}


def _reverse_kl_datum(datum: ReverseKLDatum) -> dict[str, Any]:
    weights = datum.weights
    return {
        "student_input": _model_input(datum.student_input),
        "reference_input": _model_input(datum.reference_input),
        "target_tokens": _vector(datum.target_tokens),
        "weights": _vector(weights) if weights is not None else None,
    }


def _model_input(tokens: Tokens) -> dict[str, Any]:
    from tinker import types  # noqa: PLC0415

    whole = tokens if isinstance(tokens, types.ModelInput) else types.ModelInput.from_ints(list(tokens))
    return whole.model_dump(mode="json")


def _vector(value: Vector) -> object:
    """Plain numbers as they are: the SDK's own conversion would round what should be refused."""
    import numpy as np  # noqa: PLC0415
    from tinker import types  # noqa: PLC0415

    return _tensor(value) if isinstance(value, types.TensorData) else np.asarray(value).tolist()


def _tensor(tensor: types.TensorData) -> dict[str, Any]:
    """As the SDK's own JSON had it."""
    fields = {
        "data": tensor.data,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "sparse_crow_indices": tensor.sparse_crow_indices,
        "sparse_col_indices": tensor.sparse_col_indices,
    }
    return {name: value for name, value in fields.items() if value is not None}
