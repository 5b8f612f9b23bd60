"""Attention over packed batches, registered with transformers' attention interface under the name `mint`.

The modules of a model call `attend` with whatever `plan` the forward pass was given; the plan knows which
tokens may see which. Packed training and prefill use `PackedCausal`; cached decoding has a plan of its own in
the engine.

Shapes: T tokens of the batch, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mint.models import flash
from mint.models.flash import Answer, Attend, Block, Ragged
from mint.models.threads import WIDE

ATTENTION_NAME = "mint"

Blocks: TypeAlias = npt.NDArray[np.int32]
"""The block of each token of a stretch, int32 (n,), which never falls: token i sees token j iff blocks[j] ≤ blocks[i].

So the tokens of a block see each other in both directions. One block for each token is plain causal attention.
"""


class AttentionPlan(Protocol):
    """How the tokens of one batch attend."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attend) -> Tensor:
        """(T, H, D), (T, K, D), (T, K, D) → (T, H, D)."""
        ...


@dataclass(frozen=True)
class Prefix:
    """Tokens start ≤ t < stop of a batch, which all tokens first ≤ t < end, of other stretches, see as well."""

    start: int
    stop: int
    first: int
    end: int

    @property
    def own(self) -> slice:
        """Its tokens."""
        return slice(self.start, self.stop)

    @property
    def below(self) -> slice:
        """Those that see it."""
        return slice(self.first, self.end)

    def block(self, query: Tensor, key: Tensor, value: Tensor) -> Block:
        """The queries below it and its own keys and values."""
        return Block(query[None, self.below], key[None, self.own], value[None, self.own])


@dataclass(frozen=True)
class Run:
    """`count` stretches of `length` tokens each from `start` on; each attends within itself, causally or by blocks."""

    start: int
    count: int
    length: int
    blocks: Blocks | None = None

    @property
    def rows(self) -> slice:
        """All of its tokens."""
        return slice(self.start, self.start + self.count * self.length)

    def of(self, batch: Tensor) -> Tensor:
        """(T, …) → (count, length, …)."""
        return batch[self.rows].unflatten(0, (self.count, self.length))  # type: ignore[no-any-return, no-untyped-call]


class PackedCausal:
    """Each stretch of a packed batch attends within itself, causally or by blocks, and to the prefixes above it.

    Stretches of equal length that lie side by side run as one product, so a batch of equal lengths
    costs one call.

    Args:
        lengths: of the stretches, in packing order.
        prefixes: see `Prefix`; there are none unless sequences share their beginnings. With a window, no sequence
            may then be longer than it.
        blocks: of each stretch, None for one that is causal. There is no window then.
    """

    def __init__(
        self, lengths: Sequence[int], prefixes: Sequence[Prefix] = (), blocks: Sequence[Blocks | None] | None = None
    ) -> None:
        self.prefixes = list(prefixes)
        self._lengths = lengths
        self._runs = list(_runs(lengths, blocks or [None] * len(lengths)))
        self._is_causal = all(run.blocks is None for run in self._runs)
        self._masks: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attend) -> Tensor:  # noqa: ARG002
        """See `AttentionPlan`."""
        out: Tensor = _PackedAttention.apply(query, key, value, self, how)  # type: ignore[no-untyped-call]
        return out

    def forward(self, block: Block, how: Attend) -> Answer:
        """Within each stretch alone."""
        if self._is_causal and flash.is_ragged(block.query):
            ragged = Ragged.of(self._lengths, block.query.device)
            return flash.ragged_forward(block, ragged, ragged, how)
        answers = [self._forward_run(run, Block(*map(run.of, block)), how) for run in self._runs]
        return Answer(*(_joined(pieces) for pieces in zip(*answers, strict=True)))

    def _forward_run(self, run: Run, block: Block, how: Attend) -> Answer:
        if run.blocks is None:
            return flash.forward(block, how)
        return flash.forward_masked(block, self._mask(run, block.query), how.scale)

    def backward(self, grad: Tensor, block: Block, answer: Answer, how: Attend) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of what is within each stretch."""
        if self._is_causal and flash.is_ragged(block.query):
            ragged = Ragged.of(self._lengths, block.query.device)
            return flash.ragged_backward(grad, block, answer, (ragged, ragged), how)
        parts = [
            self._backward_run(run, run.of(grad), Block(*map(run.of, block)), Answer(*map(run.of, answer)), how)
            for run in self._runs
        ]
        grad_q, grad_k, grad_v = (_joined(pieces) for pieces in zip(*parts, strict=True))
        return grad_q, grad_k, grad_v

    def _backward_run(
        self, run: Run, grad: Tensor, block: Block, answer: Answer, how: Attend
    ) -> tuple[Tensor, Tensor, Tensor]:
        if run.blocks is None:
            return flash.backward(grad, block, answer, how)
        return flash.backward_masked(grad, block, answer, self._mask(run, block.query), how.scale)

    def _mask(self, run: Run, query: Tensor) -> Tensor:
        """Additive (1, n, n), made once for all layers."""
        if run.start not in self._masks:
            assert run.blocks is not None
            blocks = torch.from_numpy(run.blocks).to(query.device)
            self._masks[run.start] = flash.additive(blocks[None, :] <= blocks[:, None], query.dtype)[None]
        return self._masks[run.start]


def _runs(lengths: Sequence[int], blocks: Sequence[Blocks | None]) -> Iterator[Run]:
    start = 0
    alike = groupby(zip(lengths, blocks, strict=True), key=lambda each: (each[0], _same_blocks(each[1])))
    for (length, _), equal in alike:
        members = list(equal)
        run = Run(start, len(members), length, members[0][1])
        yield run
        start = run.rows.stop


def _same_blocks(blocks: Blocks | None) -> bytes | None:
    return blocks.tobytes() if blocks is not None else None


class _PackedAttention(torch.autograd.Function):
    """Softmax over several blocks of keys: each block by itself, then merged by their log-sum-exp.

    Backward, a block's gradients follow from the merged output and log-sum-exp alone, so blocks stay independent
    (as in ring attention: Liu et al., 2023, arXiv 2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: PackedCausal, how: Attend) -> Tensor:
        with WIDE:
            out, lse = plan.forward(Block(query, key, value), how)
            if plan.prefixes:
                out = out.float()  # rounded once, and not at every level
            for prefix in plan.prefixes:
                answer = flash.forward(prefix.block(query, key, value), how._replace(causal=False))
                merge(out[prefix.below], lse[prefix.below], answer.out[0], answer.lse[0])
            out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.how = plan, how
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, out, lse = ctx.saved_tensors
        plan: PackedCausal = ctx.plan
        with WIDE:
            grad_q, grad_k, grad_v = plan.backward(grad, Block(query, key, value), Answer(out, lse), ctx.how)
            for prefix in plan.prefixes:
                answer = Answer(out[None, prefix.below], lse[None, prefix.below])
                block = prefix.block(query, key, value)
                q, k, v = flash.backward(grad[None, prefix.below], block, answer, ctx.how._replace(causal=False))
                grad_q[prefix.below] += q[0]
                grad_k[prefix.own] += k[0]
                grad_v[prefix.own] += v[0]
        return grad_q, grad_k, grad_v, None, None


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """(count, length, …) of each run → (T, …)."""
    flat = [piece.flatten(0, 1) for piece in pieces]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Take another block of keys into float32 (n, H, D) outputs and their (n, H) log-sum-exp, in place."""
    total = torch.logaddexp(lse, other_lse)
    out.mul_((lse - total).exp_()[..., None])
    out.add_(other_out * (other_lse - total).exp_()[..., None])
    lse.copy_(total)


def attend(  # noqa: PLR0913  # transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    plan: AttentionPlan,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls, with tensors of shape (1, heads, T, D); its output is (1, T, H, D)."""
    assert attention_mask is None, "packed batches have a plan and no mask"
    layer = module.layer_idx
    assert isinstance(layer, int)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return plan.attend(layer, q, k, v, Attend(scaling, window=sliding_window))[None], None


AttentionInterface.register(ATTENTION_NAME, attend)
