"""A run's mutable half: weights, gradients, AdamW moments and step count.

The arithmetic is `torch.optim.AdamW`'s own, run on the one flat parameter of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mint.engine.adapters import Adapter, AdapterLayout, load_adapter, save_adapter
from mint.engine.core import AdamParams, LoraShape
from mint.engine.formats import LAYOUT_VERSION, MOMENTS, OPTIMIZER_FILE
from mint.engine.pool import pool_of
from mint.errors import BadRequestError
from mint.models.lora import LinearSite


@dataclass(frozen=True)
class SavedRun:
    """A run's weights and optimizer state at one moment."""

    adapter: Adapter
    optimizer: dict[str, Tensor]

    def write(self, directory: Path, base_model: str) -> None:
        """The adapter in PEFT's format with the optimizer's moments beside it."""
        save_adapter(self.adapter, directory, base_model)
        save_file(self.optimizer, directory / OPTIMIZER_FILE)


class TrainableAdapter:
    """An adapter in training. Gradients accumulate in its buffer until `step`."""

    def __init__(self, layout: AdapterLayout, flat: Tensor) -> None:
        buffers = pool_of(flat.device).take(flat.numel())
        buffers.weights.copy_(flat)
        self._parameter = torch.nn.Parameter(buffers.weights)
        self._parameter.grad = buffers.gradients
        self.adapter = Adapter(layout, buffers.weights, buffers)
        # fused: one pass over the buffer; lr and the rest are set anew at each step
        self._optimizer = torch.optim.AdamW([self._parameter], fused=True)
        self._untouched = True

    @classmethod
    def create(cls, shape: LoraShape, sites: Sequence[LinearSite], device: torch.device) -> TrainableAdapter:
        """A fresh adapter: A from the shape's seed, B = 0, so that it computes what the base does."""
        layout = AdapterLayout(shape, sites)
        return cls(layout, layout.initial_weights(device))

    @classmethod
    def load(
        cls, directory: Path, sites: Sequence[LinearSite], device: torch.device, *, with_optimizer: bool
    ) -> TrainableAdapter:
        """Read a folder that `save` wrote; without its optimizer, a fresh one starts.

        Raises:
            BadRequestError: the files are missing or damaged, or are of another base model.
        """
        loaded = cls(*load_adapter(directory, sites, device))
        if with_optimizer:
            loaded._load_optimizer(directory)
        return loaded

    def park(self, path: Path) -> None:
        """Write everything to a file, for `unpark` in this process."""
        # copies: a file has all of the memory that a tensor is a view of, and others' runs lie there too
        gradients = None if self._untouched else self.gradients.clone()
        state = self._optimizer.state.get(self._parameter)
        content = (self.adapter.layout, self._parameter.detach().clone(), gradients, state, self._parameter.device)
        torch.save(content, path)

    @classmethod
    def unpark(cls, path: Path) -> TrainableAdapter:
        """The adapter that was parked, in every bit."""
        # our own file, written by this process
        layout, flat, gradients, state, device = torch.load(path, weights_only=False)
        parked = cls(layout, flat.to(device))
        if gradients is not None:
            parked.mark()
            parked.gradients.copy_(gradients)
        if state:
            parked._optimizer.state[parked._parameter] = state
        return parked

    @property
    def gradients(self) -> Tensor:
        """Float32 (num_parameters,), accumulated since the last step."""
        assert self._parameter.grad is not None
        return self._parameter.grad

    @property
    def has_gradients(self) -> bool:
        """Whether any were added since the last step."""
        return not self._untouched

    def mark(self) -> Tensor | None:
        """What `restore` needs to take back all that is added to the gradients from now on."""
        mark = None if self._untouched else self.gradients.clone()
        self._untouched = False
        return mark

    def restore(self, mark: Tensor | None) -> None:
        """Give the gradients the values they had at `mark`."""
        if mark is None:
            self._clear()
        else:
            self.gradients.copy_(mark)

    @property
    def is_finite(self) -> bool:
        """Whether the norm of the gradients is: what is not finite would end in the weights, and stay there."""
        return bool(torch.linalg.vector_norm(self.gradients).isfinite())

    def _clear(self) -> None:
        self.gradients.zero_()
        self._untouched = True

    def step(self, params: AdamParams) -> dict[str, float]:
        """Clip by global norm, apply AdamW, zero the gradients; returns the metrics of the step."""
        clip = params.grad_clip_norm if params.grad_clip_norm > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_([self._parameter], clip)
        self._optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self._optimizer.step()
        self._clear()
        return {
            "grad_norm": float(norm),
            "step": float(self.num_steps),
            "learning_rate": params.learning_rate,
        }

    @property
    def num_steps(self) -> int:
        """Optimizer steps taken since the moments were zero."""
        state = self._optimizer.state.get(self._parameter)
        return int(state["step"]) if state else 0

    def saved(self) -> SavedRun:
        """What there is to save, as copies that no further step touches. Gradients are no part of it."""
        state = self._optimizer.state.get(self._parameter) or {}
        tensors = {name: state[name].clone() for name in MOMENTS if name in state}
        tensors["step"] = torch.tensor(self.num_steps, dtype=torch.int64)
        tensors["layout"] = torch.tensor(LAYOUT_VERSION, dtype=torch.int64)
        return SavedRun(Adapter(self.adapter.layout, self.adapter.flat.clone()), tensors)

    def _load_optimizer(self, directory: Path) -> None:
        path = directory / OPTIMIZER_FILE
        device = self._parameter.device
        try:
            tensors = load_file(path)
            steps, layout = int(tensors["step"]), int(tensors["layout"])
            if steps == 0:
                return
            moments = {name: tensors[name].to(device) for name in MOMENTS}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadRequestError(f"the checkpoint has no optimizer state that can be read: {error}") from error
        if layout != LAYOUT_VERSION or any(
            m.shape != self._parameter.shape or m.dtype != torch.float32 for m in moments.values()
        ):
            raise BadRequestError("the checkpoint's optimizer state does not fit its adapter")
        # the fused optimizer wants its step count where the weights are
        self._optimizer.state[self._parameter] = {
            "step": torch.tensor(float(steps), device=device),
            **moments,
        }
