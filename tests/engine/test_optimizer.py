"""An optimizer step on one flat buffer against `torch.optim.AdamW` on one parameter per matrix."""

from __future__ import annotations

import pytest
import torch

from mint.engine.core import AdamParams
from mint.engine.optimizer import TrainableAdapter
from mint.models.lora import LinearSite
from tests.engine.conftest import shape

SITES = (
    LinearSite(0, "layers.0.self_attn.q_proj", "attn", 6, 10, 0),
    LinearSite(1, "layers.0.mlp.up_proj", "mlp", 6, 20, 1),
    LinearSite(2, "lm_head", "unembed", 6, 30, 2),
)
BOUND = 1e-6
"""Relative to the largest weight; fused and plain AdamW round differently."""

CASES = {
    "plain": AdamParams(learning_rate=1e-2),
    "weight decay": AdamParams(learning_rate=1e-2, weight_decay=0.3),
    "clipped": AdamParams(learning_rate=1e-2, grad_clip_norm=0.5),
    "clip above the norm": AdamParams(learning_rate=1e-2, grad_clip_norm=1e6),
    "betas and eps": AdamParams(learning_rate=1e-2, beta1=0.5, beta2=0.7, eps=1e-2),
    "all": AdamParams(learning_rate=1e-2, beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.1, grad_clip_norm=1.0),
}


class Reference:
    """Separate parameters, one optimizer and `clip_grad_norm_` over the list."""

    def __init__(self, flat: torch.Tensor, adapter: TrainableAdapter) -> None:
        self._blocks = adapter.adapter.layout.blocks
        self.parameters = [torch.nn.Parameter(f.clone()) for block in self._blocks for f in block.factors(flat)]
        self._optimizer = torch.optim.AdamW(self.parameters, foreach=False)

    def step(self, gradient: torch.Tensor, params: AdamParams) -> float:
        pieces = [factor for block in self._blocks for factor in block.factors(gradient)]
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.clone()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, params.grad_clip_norm or torch.inf)
        self._optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self._optimizer.step()
        return float(norm)


def fresh_adapter(rank: int = 4, **flags: bool) -> TrainableAdapter:
    adapter = TrainableAdapter.create(shape(rank, **flags), SITES, torch.device("cpu"))
    adapter.adapter.flat.normal_(generator=torch.Generator().manual_seed(1))
    return adapter


def assert_same_weights(adapter: TrainableAdapter, reference: Reference) -> None:
    blocks = adapter.adapter.layout.blocks
    factors = [factor for block in blocks for factor in block.factors(adapter.adapter.flat)]
    for ours, theirs in zip(factors, (p.detach() for p in reference.parameters), strict=True):
        assert float((ours - theirs).abs().max()) <= BOUND * float(theirs.abs().max())


@pytest.mark.parametrize("params", CASES.values(), ids=CASES.keys())
def test_steps_equal_adamw_on_separate_matrices(params: AdamParams) -> None:
    adapter = fresh_adapter()
    reference = Reference(adapter.adapter.flat, adapter)
    generator = torch.Generator().manual_seed(2)
    for number in range(6):
        now = AdamParams(**{**vars(params), "learning_rate": params.learning_rate / (1 + number)})
        gradient = torch.randn(adapter.gradients.shape, generator=generator) * 10.0 ** (number - 3)
        adapter.gradients.copy_(gradient)

        metrics = adapter.step(now)

        norm = reference.step(gradient, now)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(float(gradient.double().norm()), rel=1e-5)
        assert metrics["step"] == number + 1
        assert metrics["learning_rate"] == now.learning_rate
        assert_same_weights(adapter, reference)


def test_a_step_with_zero_gradient_still_decays_and_keeps_momentum() -> None:
    adapter = fresh_adapter()
    reference = Reference(adapter.adapter.flat, adapter)
    params = AdamParams(learning_rate=1e-2, weight_decay=0.5, grad_clip_norm=1.0)
    gradient = torch.randn(adapter.gradients.shape, generator=torch.Generator().manual_seed(3))
    for current in (torch.zeros_like(gradient), gradient, torch.zeros_like(gradient)):
        adapter.gradients.copy_(current)
        metrics = adapter.step(params)
        assert metrics["grad_norm"] == pytest.approx(reference.step(current, params), rel=1e-5)
        assert_same_weights(adapter, reference)


def test_a_first_step_without_gradient_or_decay_changes_nothing() -> None:
    adapter = fresh_adapter()
    before = adapter.adapter.flat.clone()
    assert adapter.step(AdamParams(learning_rate=1.0))["grad_norm"] == 0
    assert torch.equal(adapter.adapter.flat, before)


def test_a_step_zeroes_the_gradients_that_the_layers_write_to() -> None:
    adapter = fresh_adapter()
    (view,) = adapter.adapter.group(1).grad_b
    view.fill_(1.0)
    assert adapter.step(AdamParams())["grad_norm"] == pytest.approx(view.numel() ** 0.5)
    assert not view.any()
    assert not adapter.gradients.any()
    view.fill_(1.0)
    assert adapter.gradients.sum() == view.numel()


def test_flags_leave_sites_out() -> None:
    adapter = fresh_adapter(train_mlp=False)
    assert adapter.adapter.group(1) is None
    assert adapter.adapter.flat.numel() == 4 * (6 + 10) + 4 * (6 + 30)


@pytest.mark.parametrize("earlier", [False, True])
def test_what_a_failed_pass_added_can_be_taken_back(earlier: bool) -> None:
    adapter = fresh_adapter()
    if earlier:
        adapter.mark()
        adapter.gradients.fill_(2.0)
    before = adapter.gradients.clone()
    mark = adapter.mark()
    adapter.gradients.add_(1.0)
    adapter.restore(mark)
    assert torch.equal(adapter.gradients, before)


def test_steps_are_counted_from_fresh_moments() -> None:
    adapter = fresh_adapter()
    assert adapter.num_steps == 0
    adapter.step(AdamParams())
    adapter.step(AdamParams())
    assert adapter.num_steps == 2
