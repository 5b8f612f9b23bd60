"""A decoder-only model as the engine uses it: packed tokens in, hidden states out, adapters inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mint.errors import ModelLoadError
from mint.models.attention import AttentionPlan
from mint.models.experts import NUM_EXPERTS, adapt_experts, is_experts, use_adapted_experts
from mint.models.logprobs import UnembeddingHead
from mint.models.lora import LinearGroup, LinearSite, LoraLinear, SiteKind
from mint.models.norms import replace_norms
from mint.models.products import PACKED_BYTES, can_group, can_pack
from mint.models.segments import ActiveSegments, Segment, StackCache
from mint.models.threads import Threads
from mint.models.vision import ImageEncoder, Insert

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one block that read the same input, by the names transformers gives them; see `LinearGroup`."""

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Linear layers that send tokens to experts; they are no part of an MLP and stay frozen."""


class CausalLM:
    """A frozen transformers model whose linear layers accept adapters.

    Args:
        model: a `…ForCausalLM`, or one that has such a decoder inside, in evaluation mode, loaded with our attention.
            The decoder's linear layers are replaced in place.
        images: of a model that sees.
        checkpointing: compute each decoder layer again on the way back, instead of keeping what is inside it.
    """

    def __init__(
        self, model: PreTrainedModel, *, images: ImageEncoder | None = None, checkpointing: bool = False
    ) -> None:
        model.requires_grad_(False)
        self._decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
        self._embed: nn.Module = model.get_input_embeddings()
        self._active = ActiveSegments(self.device, ragged=_is_worth_grouping(model))
        replace_norms(model)
        if checkpointing:
            _checkpoint_layers(model)
        self.config = model.config.get_text_config(decoder=True)
        self.architecture: str = (model.config.architectures or [model.config.model_type])[0]
        self.images = images
        self.narrowest_window = _narrowest_window(model.config)
        self.num_parameters: int = sum(p.numel() for p in model.parameters())
        packed = _is_worth_packing(model)
        self.sites: tuple[LinearSite, ...] = tuple(_adapt(model, self._active, packed=packed))
        unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._threads = Threads(2 * self.num_parameters / len(self.sites), self.config.hidden_size)
        self.head = UnembeddingHead(unembedding, self.sites[-1].group, self._active, packed=packed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and activations."""
        return next(self._decoder.parameters()).dtype

    def stacking(self, stacks: StackCache) -> AbstractContextManager[None]:
        """See `ActiveSegments.stacking`."""
        return self._active.stacking(stacks)

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        segments: Sequence[Segment],
        inserts: Sequence[Insert] = (),
    ) -> Tensor:
        """int64 (T,) and int64 (T,) → (T, E), after the final norm. No gradient.

        Args:
            inserts: what stands in the place of tokens' embeddings, such as an image.
        """
        with torch.no_grad(), self._active.use(segments):
            return self._forward(tokens, positions, plan, inserts)

    def backward(
        self,
        tokens: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        segments: Sequence[Segment],
        head_pass: Callable[[Tensor], tuple[Tensor, Tensor]],
        inserts: Sequence[Insert] = (),
    ) -> Tensor:
        """Forward and backward; gradients are added to the buffers of the segments' adapters.

        Args:
            head_pass: from the hidden states (T, E), a value and the gradient of the loss by the hidden states.

        Returns:
            the value.
        """
        with self._active.use(segments):
            with torch.enable_grad():
                hidden = self._forward(tokens, positions, plan, inserts)
            value, grad = head_pass(hidden.detach())
            if hidden.requires_grad:  # not where only the head is adapted
                hidden.backward(grad)  # type: ignore[no-untyped-call]
        return value

    def _forward(self, tokens: Tensor, positions: Tensor, plan: AttentionPlan, inserts: Sequence[Insert]) -> Tensor:
        self._threads.use_for(len(tokens))
        embedded = self._embed(tokens[None])
        for insert in inserts:
            embedded[0].index_copy_(0, insert.rows, insert.embeddings)
        output = self._decoder(inputs_embeds=embedded, position_ids=positions[None], use_cache=False, plan=plan)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """transformers' own switch works in training mode only, which would also switch dropout on."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def _narrowest_window(config: Any) -> int | None:
    """Of the layers that attend within a sliding window; None where all see everything."""
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    return window if isinstance(window, int) else None


def _is_worth_packing(model: PreTrainedModel) -> bool:
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    return all(map(can_pack, weights)) and sum(weight.nbytes for weight in weights) <= PACKED_BYTES


def _is_worth_grouping(model: PreTrainedModel) -> bool:
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = (m for name, m in model.named_modules() if m is unembedding or _is_adaptable(m, name, unembedding))
    return all(can_group(layer.weight) for layer in layers)


def _adapt(model: PreTrainedModel, active: ActiveSegments, *, packed: bool) -> Iterator[LinearSite]:
    """Make the decoder's linear layers and experts accept adapters; the unembedding comes last and stays as it is."""
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inside = {unembedding, *model.get_decoder().modules()}  # type: ignore[no-untyped-call]
    modules = {name: module for name, module in model.named_modules() if module in inside}
    layers = {name: module for name, module in modules.items() if _is_adaptable(module, name, unembedding)}
    experts = {name: module for name, module in modules.items() if is_experts(module)}
    if not (layers or experts) or not isinstance(unembedding, nn.Linear):
        raise ModelLoadError(f"{type(model).__name__} has no linear layers that LoRA could adapt")
    index = group = 0
    for names in _groups(layers):
        product = LinearGroup([layers[name] for name in names], group, active, packed=packed)
        for layer, name in enumerate(names):
            yield _site(index, name, layers[name], group)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraLinear(layers[name], product, layer))
            index += 1
        group += 1
    for name, module in experts.items():
        for site in adapt_experts(name, module, (index, group), active, packed=packed):
            yield site
            index, last = site.index + 1, site.group
        group = last + 1
    if experts:
        use_adapted_experts(model)
    elif any(getattr(model.config, field, None) for field in NUM_EXPERTS):
        raise ModelLoadError(f"{type(model).__name__} has experts of a kind that is not served")
    yield _site(index, next(name for name, module in modules.items() if module is unembedding), unembedding, group)


def _is_adaptable(module: nn.Module, name: str, unembedding: nn.Module) -> TypeGuard[nn.Linear]:
    known = isinstance(module, nn.Linear) and module is not unembedding and _kind_of(name) is not None
    return known and name.rpartition(".")[2] not in ROUTERS


def _site(index: int, name: str, module: nn.Linear, group: int) -> LinearSite:
    return LinearSite(index, name, _kind_of(name) or "unembed", module.in_features, module.out_features, group)


def _groups(layers: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """The names of `layers` in order, those that read the same input together."""
    groups: list[tuple[str, ...]] = []
    grouped: set[str] = set()
    for name, layer in layers.items():
        if name in grouped:
            continue
        parent, _, child = name.rpartition(".")
        siblings = next((names for names in SAME_INPUT if child in names), (child,))
        names = tuple(f"{parent}.{sibling}" for sibling in siblings if f"{parent}.{sibling}" in layers)
        if any(layers[other].in_features != layer.in_features for other in names):
            names = (name,)
        grouped.update(names)
        groups.append(names)
    return groups


def _kind_of(name: str) -> SiteKind | None:
    """Attention or MLP, told by the names that transformers gives the blocks of a decoder layer."""
    blocks = name.split(".")[:-1]
    if any("attn" in block or "attention" in block for block in blocks):
        return "attn"
    if any("mlp" in block or "feed_forward" in block for block in blocks):
        return "mlp"
    return None
