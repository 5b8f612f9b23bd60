"""Mixtures of experts, registered with transformers' experts interface under the name `mint`.

transformers keeps the experts of a layer as one tensor and routes tokens to them; each expert is a gated MLP of its
own, and has LoRA factors of its own. An expert computes the tokens that chose it, those of an adapter side by side.

Shapes: T tokens, k experts for each, n tokens of one expert, E hidden size, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from mint.errors import ModelLoadError
from mint.models.grouped_experts import GroupedExperts
from mint.models.lora import FrozenGroup, LinearSite
from mint.models.products import can_group
from mint.models.segments import ActiveSegments, select

EXPERTS_NAME = "mint"

NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of configurations that say how many experts a layer has."""

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""Of one expert, by the names that PEFT and others give them where experts are modules."""


class AdaptedExperts:
    """The experts of one layer.

    Args:
        module: transformers', with `gate_up_proj` (experts, 2·I, E) and `down_proj` (experts, E, I).
        group: the number of the first of its groups; every expert has two.
    """

    def __init__(self, module: Any, group: int, active: ActiveSegments, *, packed: bool) -> None:
        self._module = module
        self._active = active
        width = module.down_proj.shape[2]
        self._up = [
            FrozenGroup(group + 2 * expert, weight, None, [width, width], packed=packed)
            for expert, weight in enumerate(module.gate_up_proj.detach())
        ]
        self._down = [
            FrozenGroup(group + 2 * expert + 1, weight, None, [len(weight)], packed=packed)
            for expert, weight in enumerate(module.down_proj.detach())
        ]

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(T, E), the experts of each token int64 (T, k), and their weights (T, k) → (T, E)."""
        result = torch.zeros_like(hidden)
        # stable: the tokens of an expert stay in ascending order
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self._up)).tolist()
        weights = weights.flatten()
        for expert, places in enumerate(torch.split(order, counts)):
            if len(places):
                rows = places // chosen.shape[1]
                out = self._expert(expert, hidden[rows], rows)
                result.index_add_(0, rows, (out * weights[places, None]).to(result.dtype))
        return result

    def _expert(self, expert: int, x: Tensor, rows: Tensor) -> Tensor:
        current = self._active.stretches(select(self._active.segments, rows))
        gate, up = self._up[expert].product(x, self._active, current)
        activated = self._module.act_fn(gate) * up
        (out,) = self._down[expert].product(activated, self._active, current)
        return out


def adapt_experts(
    name: str, module: nn.Module, start: tuple[int, int], active: ActiveSegments, *, packed: bool
) -> Iterator[LinearSite]:
    """Make the experts of one layer accept adapters.

    Args:
        start: the number of the first of their sites, and of the first of their groups.
        packed: see `Product`.

    Raises:
        ModelLoadError: they compute something else than plain gated MLPs.
    """
    index, group = start
    gate_up, down = _fused(module)
    if can_group(gate_up) and can_group(down):
        module.mint = GroupedExperts(module, group, active)  # type: ignore[assignment]
    else:
        module.mint = AdaptedExperts(module, group, active, packed=packed)  # type: ignore[assignment]
    width, hidden = down.shape[2], down.shape[1]
    sizes = dict(zip(PROJECTIONS, ((hidden, width), (hidden, width), (width, hidden)), strict=True))
    for expert in range(len(down)):
        for projection, (inputs, outputs) in sizes.items():
            number = group + 2 * expert + (projection == "down_proj")
            yield LinearSite(index, f"{name}.{expert}.{projection}", "mlp", inputs, outputs, number)
            index += 1


def expert_weights(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights (O, I) of the experts of one layer by their names, as views of what transformers keeps.

    Raises:
        ModelLoadError: they are no plain gated MLPs.
    """
    gate_up, down = _fused(module)
    for expert, (both, last) in enumerate(zip(gate_up, down, strict=True)):
        for projection, weight in zip(PROJECTIONS, (*both.chunk(2), last), strict=True):
            yield f"{name}.{expert}.{projection}", weight


def _fused(module: nn.Module) -> tuple[Tensor, Tensor]:
    """`gate_up_proj` (experts, 2·I, E) and `down_proj` (experts, E, I)."""
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if (
        isinstance(gate_up, Tensor)
        and isinstance(down, Tensor)
        and not any(getattr(module, flag, False) for flag in ("is_transposed", "has_bias", "has_post_expert_norm"))
        and getattr(module, "is_concatenated", True)
    ):
        return gate_up, down
    raise ModelLoadError(f"{type(module).__name__} has experts that are no plain gated MLPs, which is not served")


def is_experts(module: nn.Module) -> bool:
    """Whether a module is one that dispatches through the experts interface."""
    return hasattr(module, "_apply_gate") and hasattr(module, "down_proj")


@contextmanager
def eager_experts(model: PreTrainedModel) -> Iterator[None]:
    """Run the body with transformers' plain implementation of experts."""
    before = model.config._experts_implementation
    model.config._experts_implementation = "eager"
    try:
        yield
    finally:
        model.config._experts_implementation = before


def use_adapted_experts(model: PreTrainedModel) -> None:
    """From now on experts run as `adapt_experts` left them."""
    model.config._experts_implementation = EXPERTS_NAME


def experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The function transformers calls."""
    result: Tensor = module.mint(hidden_states, top_k_index, top_k_weights)
    return result


ExpertsInterface.register(EXPERTS_NAME, experts_forward)
