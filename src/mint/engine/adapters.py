"""An adapter's weights in one flat buffer, and its files in PEFT's format.

All A and B factors of an adapter are views of one contiguous float32 vector, and so are their gradients. An
optimizer step, a zero-grad, a copy is then one pass over one buffer, however many layers there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mint.engine.core import LoraShape
from mint.engine.formats import CONFIG_FILE, WEIGHTS_FILE, factor_name, peft_config
from mint.engine.pool import Buffers
from mint.errors import BadRequestError
from mint.models.lora import LinearSite
from mint.models.segments import AdapterSlot, GroupWeights

SCALE_VARIANTS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""Settings of PEFT under which an adapter computes something else than LoRA with one scale."""


@dataclass(frozen=True)
class Block:
    """Where one site's factors lie in the flat buffer, each row-major."""

    site: LinearSite
    rank: int
    a_start: int
    b_start: int

    def factors(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views A (…, r, I) and B (…, O, r) of a flat buffer (…, num_parameters)."""
        a = flat[..., self.a_start : self.a_start + self.rank * self.site.in_features]
        b = flat[..., self.b_start : self.b_start + self.rank * self.site.out_features]
        above = flat.shape[:-1]
        return a.view(*above, self.rank, self.site.in_features), b.view(*above, self.site.out_features, self.rank)


class AdapterLayout:
    """The blocks of an adapter of a given shape, one per site that its flags train.

    The A factors of a group of sites lie next to each other, so that they are one matrix, and its B factors follow.
    """

    def __init__(self, shape: LoraShape, sites: Sequence[LinearSite]) -> None:
        trained = {"attn": shape.train_attn, "mlp": shape.train_mlp, "unembed": shape.train_unembed}
        self.shape = shape
        self.groups: dict[int, list[Block]] = {}
        start = 0
        for group, members in groupby((site for site in sites if trained[site.kind]), key=lambda site: site.group):
            start = self._lay_out(group, list(members), start)
        self.num_parameters = start
        if not start:
            raise BadRequestError("this base model has no layers of the kinds to be trained", field="lora_config")

    def _lay_out(self, group: int, sites: Sequence[LinearSite], start: int) -> int:
        """Place a group's blocks from `start` on; returns where they end."""
        rank = self.shape.rank
        a_starts = list(accumulate((rank * site.in_features for site in sites), initial=start))
        b_starts = list(accumulate((rank * site.out_features for site in sites), initial=a_starts[-1]))
        starts = zip(sites, a_starts, b_starts, strict=False)
        self.groups[group] = [Block(site, rank, a_start, b_start) for site, a_start, b_start in starts]
        return b_starts[-1]

    @property
    def blocks(self) -> list[Block]:
        """Of all groups, in the order of the sites."""
        return [block for blocks in self.groups.values() for block in blocks]

    def initial_weights(self, device: torch.device) -> Tensor:
        """A as PEFT's default (Kaiming uniform, a = √5, so U(±1/√I)), drawn from the shape's seed; B = 0."""
        assert self.shape.seed is not None, "loaded weights are not drawn"
        generator = torch.Generator().manual_seed(self.shape.seed)
        flat = torch.zeros(self.num_parameters)
        for block in self.blocks:
            a, _ = block.factors(flat)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        return flat.to(device)


class Adapter:
    """Weights that a batch can run through; an `AdapterSlot` of the models layer.

    Args:
        flat: float32 (layout.num_parameters,), all factors.
        buffers: where `flat` and its gradients lie, for a run in training; None for an immutable revision.
    """

    def __init__(self, layout: AdapterLayout, flat: Tensor, buffers: Buffers | None = None) -> None:
        self.layout = layout
        self.flat = flat
        self.scale, self.rank = layout.shape.scale, layout.shape.rank
        self.num_bytes = flat.nbytes
        # the seed does not matter to what can be stacked; that it lies in one piece of memory does
        memory = flat.untyped_storage().data_ptr() if buffers is not None else None
        self.shape: object = replace(layout.shape, seed=None), memory
        self.gradients = buffers.gradients if buffers is not None else None
        self._buffers = buffers  # keeps them from being given to another run
        self._groups = _groups(layout, flat, self.gradients)

    def group(self, index: int) -> GroupWeights | None:
        """See `AdapterSlot`."""
        return self._groups.get(index)

    def stack(self, others: Sequence[AdapterSlot]) -> Stack:
        """See `AdapterSlot`."""
        return Stack(cast("Sequence[Adapter]", [self, *others]))


class Stack:
    """Adapters of one shape, side by side; an `AdapterStack` of the models layer.

    Those that lie at equal distances in one piece of memory are read, and their gradients written, where they are. Of
    others the weights are copied.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters: Sequence[AdapterSlot] = adapters
        layout, weights = adapters[0].layout, [adapter.flat for adapter in adapters]
        gradients = [adapter.gradients for adapter in adapters if adapter.gradients is not None]
        flat = _as_one(weights)
        together = _as_one(gradients) if len(gradients) == len(adapters) and flat is not None else None
        self._groups = _groups(layout, torch.stack(weights) if flat is None else flat, together)

    def group(self, index: int) -> GroupWeights | None:
        """See `AdapterStack`."""
        return self._groups.get(index)


def _as_one(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors (size,) as one (S, size) over the same memory, if they lie in order and at equal distances."""
    first, second = tensors[:2]
    step = second.storage_offset() - first.storage_offset()
    start, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for place, tensor in enumerate(tensors):
        if tensor.untyped_storage().data_ptr() != storage or tensor.storage_offset() != start + place * step:
            return None
    return first.as_strided((len(tensors), len(first)), (step, 1), start) if step > 0 else None


def _groups(layout: AdapterLayout, flat: Tensor, grads: Tensor | None) -> dict[int, GroupWeights]:
    """The factors of each group, views of flat buffers (…, layout.num_parameters)."""
    return {
        group: GroupWeights(*_factors(blocks, flat), *(_factors(blocks, grads) if grads is not None else (None, None)))
        for group, blocks in layout.groups.items()
    }


def _factors(blocks: Sequence[Block], flat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The A factors of a group as one (…, R, I), and each B (…, O, r)."""
    first, width = blocks[0], blocks[0].site.in_features
    rows = sum(block.rank for block in blocks)
    a = flat[..., first.a_start : first.a_start + rows * width].view(*flat.shape[:-1], rows, width)
    return a, tuple(block.factors(flat)[1] for block in blocks)


def save_adapter(adapter: Adapter, directory: Path, base_model: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as `peft` reads them."""
    tensors: dict[str, Tensor] = {}
    for block in adapter.layout.blocks:
        a, b = block.factors(adapter.flat)
        tensors[_key(block.site, "A")] = a.clone()
        tensors[_key(block.site, "B")] = b.clone()
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    config = peft_config(adapter.layout.shape, (block.site.name for block in adapter.layout.blocks), base_model)
    text = json.dumps(config, indent=2, sort_keys=True)
    (directory / CONFIG_FILE).write_text(text + "\n")


def load_adapter(directory: Path, sites: Sequence[LinearSite], device: torch.device) -> tuple[AdapterLayout, Tensor]:
    """Read what `save_adapter` wrote: its layout and a fresh flat buffer.

    Raises:
        BadRequestError: the files are missing or damaged, or are of another base model.
    """
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
        tensors = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise BadRequestError(f"the checkpoint cannot be read: {error}") from error
    layout = AdapterLayout(_shape_of(config, tensors, sites), sites)
    flat = torch.empty(layout.num_parameters, device=device)
    for block in layout.blocks:
        for factor, view in zip("AB", block.factors(flat), strict=True):
            stored = tensors.pop(_key(block.site, factor), None)
            if stored is None or stored.shape != view.shape:
                raise BadRequestError(
                    f"the checkpoint does not fit this base model: {_key(block.site, factor)} should be "
                    f"{tuple(view.shape)} and is {None if stored is None else tuple(stored.shape)}"
                )
            view.copy_(stored)
    if tensors:
        raise BadRequestError(f"the checkpoint adapts layers that the base model lacks: {sorted(tensors)[0]}")
    return layout, flat


def _key(site: LinearSite, factor: str) -> str:
    return factor_name(site.name, factor)


def _shape_of(config: dict[str, Any], tensors: dict[str, Tensor], sites: Sequence[LinearSite]) -> LoraShape:
    """The shape that a PEFT folder holds, told by the tensors that are there."""
    present = {site.kind: tensors[key] for site in sites if (key := _key(site, "A")) in tensors}
    try:
        unserved = [name for name in SCALE_VARIANTS if config.get(name)]
        shape = LoraShape(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            seed=None,
            train_attn="attn" in present,
            train_mlp="mlp" in present,
            train_unembed="unembed" in present,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadRequestError(f"{CONFIG_FILE} is not the configuration of a LoRA: {error!r}") from error
    if unserved:
        raise BadRequestError(f"{CONFIG_FILE} sets {unserved[0]}, which is not served")
    # before anything of that rank is allocated
    if not present or any(len(a) != shape.rank for a in present.values()):
        raise BadRequestError(f"the checkpoint has no weights of rank {shape.rank} for this base model")
    return shape
