"""What several tests of the engine need beside the driver: trained runs, passes, views of a run's state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mint.engine.core import (
    AdamParams,
    CreateRun,
    Datum,
    ExportRevision,
    ForwardBackward,
    LoraShape,
    OptimStep,
    Passed,
    Revision,
)
from mint.engine.loss_specs import LOSS_SPECS
from mint.engine.optimizer import TrainableAdapter
from tests.engine.conftest import EngineDriver, make_datum

LARGE_STEPS = AdamParams(learning_rate=3e-2)


def trainable(driver: EngineDriver, run: str) -> TrainableAdapter:
    return driver.engine._trainer.run(run)


def weights(driver: EngineDriver, run: str) -> Tensor:
    return trainable(driver, run).adapter.flat.clone()


def gradients(driver: EngineDriver, run: str) -> Tensor:
    return trainable(driver, run).gradients.clone()


def trained_run(driver: EngineDriver, run: str, shape: LoraShape, seed: int = 0, steps: int = 2) -> None:
    """B starts at zero: a few large steps make both factors matter."""
    rng = np.random.default_rng(seed)
    driver.one(CreateRun(run, shape))
    for _ in range(steps):
        driver.one(ForwardBackward(run, (make_datum(rng, 12),), "cross_entropy"))
        driver.one(OptimStep(run, LARGE_STEPS))


def export(driver: EngineDriver, run: str, folder: Path) -> Revision:
    folder.mkdir(parents=True)
    driver.one(ExportRevision(run, folder, key=str(folder)))
    return Revision(str(folder), folder)


def next_token_datum(tokens: np.ndarray) -> Datum:
    """Every token but the first is a target."""
    inputs = {
        "target_tokens": tokens[1:].astype(np.int64),
        "weights": np.ones(len(tokens) - 1, np.float32),
    }
    return Datum(tokens[:-1].astype(np.int32), inputs)


def policy_pass(
    run: str, lengths: list[int], loss_fn: str, rng: np.random.Generator, *, forward_only: bool = False
) -> ForwardBackward:
    data = tuple(make_datum(rng, length, policy=True) for length in lengths)
    return ForwardBackward(run, data, loss_fn, dict(LOSS_SPECS[loss_fn].config), forward_only)


def assert_same_pass(ours: object, expected: object, bound: float) -> None:
    assert isinstance(ours, Passed), ours
    assert isinstance(expected, Passed), expected
    for a, b in zip(ours.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    assert ours.metrics.keys() == expected.metrics.keys()
    # terms of a sum may cancel
    tokens = expected.metrics.get("num_tokens:sum", 1.0)
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=bound, atol=bound * tokens, err_msg=name)


def assert_same_gradients(ours: Tensor, expected: Tensor, bound: float) -> None:
    """Within `bound` of the largest entry."""
    assert torch.isfinite(expected).all()
    assert expected.any(), "a comparison of zeros"
    assert float((ours - expected).abs().max()) <= bound * float(expected.abs().max())


class MergedModel:
    """The base model of transformers with the products BA added to its weights, so that autograd reaches A and B.

    Attributes:
        flat: the adapter's factors, a leaf; its gradient is what ours is compared with.
    """

    def __init__(self, folder: Path, adapter: TrainableAdapter | None, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)
        self.model.config._experts_implementation = "eager"  # others know no float64
        self.flat = adapter.adapter.flat.to(dtype, copy=True).requires_grad_() if adapter is not None else None
        self._merged: dict[str, Tensor] = {}
        if adapter is None or self.flat is None:
            return
        self._adapter = adapter.adapter
        self._merge()

    def _merge(self) -> None:
        """Anew for each backward pass, which frees the graph of the products."""
        assert self.flat is not None
        self._merged.clear()
        for block in self._adapter.layout.blocks:
            a, b = block.factors(self.flat)
            self._add(block.site.name, self._adapter.scale * b @ a)

    def _add(self, site: str, product: Tensor) -> None:
        """Experts lie in one tensor per layer, gate and up projections below each other."""
        block, _, projection = site.rpartition(".")
        experts, _, expert = block.rpartition(".")
        if not expert.isdecimal() or not experts.endswith("experts"):
            self._merged[f"{site}.weight"] = self.model.get_submodule(site).weight + product
            return
        name = f"{experts}.{'down_proj' if projection == 'down_proj' else 'gate_up_proj'}"
        weight = self._merged.get(name, self.model.get_parameter(name))
        padding = torch.zeros_like(weight)
        start = len(product) if projection == "up_proj" else 0
        placed = torch.nn.functional.pad(product, (0, 0, start, weight.shape[1] - start - len(product)))
        self._merged[name] = weight + padding.index_add(0, torch.tensor([int(expert)]), placed[None])

    def logits(self, tokens: np.ndarray) -> Tensor:
        """(N, V) of one sequence."""
        if self.flat is not None:
            self._merge()
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        logits: Tensor = torch.func.functional_call(self.model, self._merged, (ids,), tie_weights=False).logits[0]
        return logits

    def logprobs(self, datum: Datum) -> Tensor:
        """(N,) of the datum's targets."""
        targets = torch.from_numpy(datum.loss_inputs["target_tokens"])
        return self.logits(datum.tokens).log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
