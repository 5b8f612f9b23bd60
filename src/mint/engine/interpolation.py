"""Sums of adapters: ΔW = Σ cᵢ·ΔWᵢ, without ever computing a ΔW.

ΔWᵢ is sᵢ·Bᵢ·Aᵢ. The A factors stand below each other and the B factors, multiplied by cᵢ·sᵢ, beside each other; their
product is the sum. So the rank of the result is the sum of the ranks, and each factor is rounded once, as float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mint.engine.adapters import Adapter, AdapterLayout, load_adapter
from mint.engine.core import LoraShape, WeightedRevision
from mint.errors import BadRequestError
from mint.models.lora import LinearSite

CPU = torch.device("cpu")


def interpolate(sources: Sequence[WeightedRevision], sites: Sequence[LinearSite]) -> Adapter:
    """The sum of some revisions. What only some of them adapt, the others leave as the base model has it.

    Raises:
        BadRequestError: a revision is missing, damaged or of another base model, or the sum is not finite.
    """
    loaded = [(source.coefficient, *load_adapter(source.directory, sites, CPU)) for source in sources]
    layout = AdapterLayout(_sum_shape([layout.shape for _, layout, _ in loaded]), sites)
    flat = torch.zeros(layout.num_parameters)
    start = 0
    for coefficient, theirs, weights in loaded:
        ranks = slice(start, start + theirs.shape.rank)
        _place(layout, flat, ranks, theirs, weights, coefficient)
        start = ranks.stop
    if not flat.isfinite().all():
        raise BadRequestError("the weighted sum is not finite as float32", field="coefficients")
    return Adapter(layout, flat)


def _sum_shape(shapes: Sequence[LoraShape]) -> LoraShape:
    return LoraShape(
        rank=sum(shape.rank for shape in shapes),
        seed=None,
        train_attn=any(shape.train_attn for shape in shapes),
        train_mlp=any(shape.train_mlp for shape in shapes),
        train_unembed=any(shape.train_unembed for shape in shapes),
    )


def _place(
    layout: AdapterLayout, flat: Tensor, ranks: slice, theirs: AdapterLayout, weights: Tensor, coefficient: float
) -> None:
    """Write one adapter's factors into those ranks of the sum's."""
    factor = coefficient * theirs.shape.scale / layout.shape.scale
    blocks = {block.site: block for block in theirs.blocks}
    for block in layout.blocks:
        if block.site in blocks:
            (a, b), (their_a, their_b) = block.factors(flat), blocks[block.site].factors(weights)
            a[ranks] = their_a
            b[:, ranks] = their_b.double() * factor  # rounded once
