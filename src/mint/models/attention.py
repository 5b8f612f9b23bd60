"""Attention over packed batches, registered with transformers' attention interface under the name `mint`.

The modules of a model call `attend` with whatever `plan` the forward pass was given; the plan knows which
tokens may see which. Packed training and prefill use `PackedCausal`; cached decoding has a plan of its own in
the engine.

Shapes: T tokens of the batch, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION_NAME = "mint"


class AttentionPlan(Protocol):
    """How the tokens of one batch attend."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, T, D), (1, K, T, D), (1, K, T, D) → (1, H, T, D)."""
        ...


class PackedCausal:
    """Each sequence of a packed batch attends causally within itself.

    Sequences of equal length that lie side by side run as one product, so a batch of equal lengths
    costs one call.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._runs = [(length, len(list(run))) for length, run in groupby(lengths)]
        self._sizes = [length * count for length, count in self._runs]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:  # noqa: ARG002
        """See `AttentionPlan`."""
        # split, not slices: its backward is one concatenation, that of a slice a zero tensor of full size
        pieces = zip(*(torch.split(t, self._sizes, dim=2) for t in (query, key, value)), self._runs, strict=True)
        outputs = [_equal_lengths(q, k, v, count, scale) for q, k, v, (_, count) in pieces]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _equal_lengths(query: Tensor, key: Tensor, value: Tensor, count: int, scale: float) -> Tensor:
    """`count` sequences of one length, packed along the token axis: attend within each."""
    q, k, v = (_unpack(t, count) for t in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(0, 1).reshape(query.shape)


def _unpack(packed: Tensor, count: int) -> Tensor:
    """(1, H, count·n, D) → (count, H, n, D)."""
    _, heads, tokens, size = packed.shape
    return packed.view(heads, count, tokens // count, size).transpose(0, 1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    plan: AttentionPlan,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls; its output is (1, T, H, D)."""
    assert attention_mask is None, "packed batches have a plan and no mask"
    layer = module.layer_idx
    assert isinstance(layer, int)
    return plan.attend(layer, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, attend)
