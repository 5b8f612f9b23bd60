"""RMSNorm with a hand-written backward pass.

y = w · x / √(mean(x²) + eps) (Zhang & Sennrich, 2019, arXiv 1910.07467). The weight is frozen. Autograd spends some
fifteen operations on the gradient of x, which is five when written out; with x̂ = x / √(mean(x²) + eps) and h = w · g:
grad x = (h − x̂ · mean(h · x̂)) / √(mean(x²) + eps).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PLAIN_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3MoeRMSNorm")
"""Classes of transformers that compute exactly this; others keep their own."""

ONE_PLUS_RMS_NORMS = ("GemmaRMSNorm", "Gemma3RMSNorm")
"""Those that multiply by 1 + w."""


class RmsNorm(nn.Module):
    """Stands in for one of `PLAIN_RMS_NORMS` or `ONE_PLUS_RMS_NORMS` whose weight is float32."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        plain = type(original).__name__ in PLAIN_RMS_NORMS
        self.weight = nn.Parameter(original.weight.detach() + (0 if plain else 1), requires_grad=False)
        self.variance_epsilon: float = original.variance_epsilon if plain else original.eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, E) → (…, E)."""
        if not torch.is_grad_enabled():
            return _normalize(x, self.variance_epsilon)[0].mul_(self.weight)
        y: Tensor = _RmsNorm.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return y


def _normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """X̂ and what x was multiplied by."""
    inverse = x.pow(2).mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return x * inverse, inverse


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normalized, inverse = _normalize(x, eps)
        ctx.save_for_backward(normalized, inverse, weight)
        return normalized * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        normalized, inverse, weight = ctx.saved_tensors
        h = grad * weight
        mean = (h * normalized).mean(dim=-1, keepdim=True)
        return torch.addcmul(h, normalized, mean, value=-1).mul_(inverse), None, None


def replace_norms(model: nn.Module) -> None:
    """Put `RmsNorm` in the place of every norm that computes the same."""
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        known = type(module).__name__ in PLAIN_RMS_NORMS + ONE_PLUS_RMS_NORMS
        if known and weight is not None and weight.dtype == torch.float32:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, RmsNorm(module))
