"""RmsNorm against the modules of transformers that it stands in for."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from mint.models.norms import RmsNorm, replace_norms


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm, GemmaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("shape", [(1, 7, 32), (1, 7, 3, 32)])
def test_values_and_gradients_equal_the_original(kind: type[torch.nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    original = kind(32, eps=1e-6).requires_grad_(False)
    original.weight.uniform_(0.5, 2)
    x, grad = torch.randn(shape), torch.randn(shape)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = RmsNorm(original)(ours), original(theirs)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_only_norms_that_compute_the_same_are_replaced() -> None:
    model = torch.nn.ModuleDict(
        {"llama": LlamaRMSNorm(8), "gemma": Gemma2RMSNorm(8), "coarse": LlamaRMSNorm(8).to(torch.bfloat16)}
    )
    replace_norms(model)
    assert isinstance(model["llama"], RmsNorm)
    assert isinstance(model["gemma"], Gemma2RMSNorm)
    assert isinstance(model["coarse"], LlamaRMSNorm)
