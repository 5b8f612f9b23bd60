"""Which optimizer there is, and the settings of one step."""

from __future__ import annotations

from mint.engine.core import AdamParams
from mint.errors import BadRequestError
from mint.wire.requests import OptimizerConfig, OptimizerParams

WHY_NOT = {
    "dimuon": "its update rule is not public: the documentation names the number of its matrix-sign iterations and "
    "their normalisation as internal constants",
}
"""Optimizers of the protocol that are not served, and the reason."""


def refuse_optimizer(config: OptimizerConfig) -> None:
    """There is one optimizer.

    Raises:
        BadRequestError: the request asks for another.
    """
    if config.type != "adamw":
        raise _not_served(config.type, "adamw", "optimizer_config.type")


def adam_params(params: OptimizerParams) -> AdamParams:
    """The settings of a step; what the request leaves out has the SDK's defaults.

    Raises:
        BadRequestError: they are those of another optimizer.
    """
    other = params.optimizer_params
    if other is not None and other.get("type") != "adamw":
        raise _not_served(other.get("type"), "adamw, with adam_params", "optimizer_params.type")
    if other is not None:
        raise BadRequestError("adamw takes its settings from adam_params", field="optimizer_params")
    if params.adam_params is None:
        return AdamParams()
    settings = params.adam_params.model_dump()
    name = settings.pop("type")
    if name != "adamw":
        raise _not_served(name, "adamw", "adam_params.type")
    return AdamParams(**settings | {"grad_clip_norm": max(0.0, settings["grad_clip_norm"])})


def _not_served(name: object, served: str, field: str) -> BadRequestError:
    shown = repr(name)[:80] if name is not None else "an optimizer without a type"
    reason = f" ({WHY_NOT[name]})" if isinstance(name, str) and name in WHY_NOT else ""
    return BadRequestError(f"{shown} is not served{reason}; served is {served}", field=field)
