"""A decoder-only model as the engine uses it: packed tokens in, hidden states out, adapters inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mint.errors import ModelLoadError
from mint.models.attention import AttentionPlan
from mint.models.logprobs import UnembeddingHead
from mint.models.lora import ActiveSegments, LinearSite, LoraLinear, Segment, SiteKind
from mint.models.norms import replace_norms
from mint.models.threads import Threads


class CausalLM:
    """A frozen transformers model whose linear layers accept adapters.

    Args:
        model: a `…ForCausalLM`, in evaluation mode, loaded with our attention. Its linear layers are replaced
        in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.requires_grad_(False)
        self._decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
        self._embed: nn.Module = model.get_input_embeddings()
        self._active = ActiveSegments()
        replace_norms(model)
        self.config = model.config
        self.num_parameters: int = sum(p.numel() for p in model.parameters())
        self.sites: tuple[LinearSite, ...] = tuple(_adapt_linears(model, self._active))
        unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._threads = Threads(2 * self.num_parameters / len(self.sites))
        self.head = UnembeddingHead(unembedding, self.sites[-1].index)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and activations."""
        return next(self._decoder.parameters()).dtype

    def hidden_states(
        self, tokens: Tensor, positions: Tensor, plan: AttentionPlan, segments: Sequence[Segment]
    ) -> Tensor:
        """int64 (T,) and int64 (T,) → (T, E), after the final norm."""
        self._threads.use_for(len(tokens))
        embedded = self._embed(tokens[None])
        with self._active.use(segments):
            output = self._decoder(inputs_embeds=embedded, position_ids=positions[None], use_cache=False, plan=plan)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def _adapt_linears(model: PreTrainedModel, active: ActiveSegments) -> list[LinearSite]:
    """Replace the decoder's linear layers by `LoraLinear`; the unembedding comes last and is not replaced."""
    sites: list[LinearSite] = []
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module is unembedding:
            continue
        kind = _kind_of(name)
        if kind is None:
            continue
        sites.append(LinearSite(len(sites), name, kind, module.in_features, module.out_features))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoraLinear(module, sites[-1].index, active))
    if not sites or not isinstance(unembedding, nn.Linear):
        raise ModelLoadError(f"{type(model).__name__} has no linear layers that LoRA could adapt")
    name = next(name for name, module in model.named_modules() if module is unembedding)
    sites.append(LinearSite(len(sites), name, "unembed", unembedding.in_features, unembedding.out_features))
    return sites


def _kind_of(name: str) -> SiteKind | None:
    """Attention or MLP, told by the names that transformers gives the blocks of a decoder layer."""
    blocks = name.split(".")[:-1]
    if any("attn" in block or "attention" in block for block in blocks):
        return "attn"
    if any("mlp" in block or "feed_forward" in block for block in blocks):
        return "mlp"
    return None
