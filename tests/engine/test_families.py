"""Model families beside Qwen3, each as a small random model, against autograd through merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from mint.engine.core import Datum, ForwardBackward, LoraShape, Passed, PromptQuery, Sample, Sampled, SamplingParams
from mint.models.causal_lm import CausalLM
from mint.tiny import model_path
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import (
    MergedModel,
    assert_same_gradients,
    assert_same_pass,
    export,
    gradients,
    next_token_datum,
    policy_pass,
    trainable,
    trained_run,
)

BOUND = 1e-5

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}
FAMILIES: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SIZES, head_dim=12)),
    "gemma3, narrow windows": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, head_dim=12, sliding_window=9, sliding_window_pattern=2),
    ),
    "mistral, narrow windows": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=11)),
    "gemma3, wide windows": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, head_dim=12, sliding_window=40, sliding_window_pattern=2),
    ),
    "mistral, wide windows": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=41)),
    "phi3": (Phi3ForCausalLM, Phi3Config(**SIZES)),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, head_dim=12, **MOE)),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None)),
}


def make_family(name: str, root: Path) -> Path:
    """A folder with a random model of one of FAMILIES."""
    kind, config = FAMILIES[name]
    folder = root / name.partition(",")[0]
    torch.manual_seed(0)
    kind(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineDriver]:
    folder = make_family(request.param, tmp_path_factory.mktemp("family"))
    driver = make_driver(folder, max_batch_tokens=8192)
    trained_run(driver, "run", shape(4))
    trained_run(driver, "other", LoraShape(rank=2, seed=9, train_attn=False), seed=1)
    return folder, driver


def expected(folder: Path, driver: EngineDriver, run: str, data: tuple[Datum, ...]) -> tuple[list[np.ndarray], Any]:
    model = MergedModel(folder, trainable(driver, run), torch.float64)
    logprobs = [model.logprobs(datum) for datum in data]
    losses = [-(torch.from_numpy(d.loss_inputs["weights"]) * p).sum() for d, p in zip(data, logprobs, strict=True)]
    torch.stack(losses).sum().backward()
    assert model.flat is not None
    return [p.detach().numpy() for p in logprobs], model.flat.grad.float()


def clear(driver: EngineDriver) -> None:
    for run in ("run", "other"):
        trainable(driver, run).gradients.zero_()


def test_logprobs_and_gradients_equal_autograd(family: tuple[Path, EngineDriver]) -> None:
    folder, driver = family
    rng = np.random.default_rng(0)
    passes = {run: policy_pass(run, [5, 30, 30, 1], "cross_entropy", rng) for run in ("run", "other")}
    clear(driver)
    answers = dict(zip(passes, driver.together(passes.values()), strict=True))
    for run, command in passes.items():
        logprobs, gradient = expected(folder, driver, run, command.data)
        answer = answers[run]
        assert isinstance(answer, Passed)
        for ours, theirs in zip(answer.logprobs, logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=BOUND)
        assert_same_gradients(gradients(driver, run), gradient, BOUND)


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each batch that is computed from now on."""
    counted: list[int] = []
    forward = CausalLM._forward

    def watch(self: CausalLM, tokens: torch.Tensor, *arguments: Any) -> Any:
        counted.append(len(tokens))
        return forward(self, tokens, *arguments)

    monkeypatch.setattr(CausalLM, "_forward", watch)
    return counted


def test_shared_prefixes_change_nothing(family: tuple[Path, EngineDriver], monkeypatch: pytest.MonkeyPatch) -> None:
    _, driver = family
    rng = np.random.default_rng(1)
    command = policy_pass("run", [40, 36, 40], "importance_sampling", rng)
    for datum in command.data:
        datum.tokens[:30] = command.data[0].tokens[:30]
    clear(driver)
    counted = count_tokens(monkeypatch)
    ours, grad = driver.one(command), gradients(driver, "run")
    window = driver.engine._trainer._model.narrowest_window
    assert counted == [30 + 10 + 6 + 10 if window is None or window >= 40 else 40 + 36 + 40]
    monkeypatch.setattr("mint.engine.prefixes.MIN_SHARED", 1 << 30)
    clear(driver)
    assert_same_pass(ours, driver.one(command), BOUND)
    assert_same_gradients(grad, gradients(driver, "run"), BOUND)


def test_samples_have_the_logprobs_of_forward(family: tuple[Path, EngineDriver], tmp_path: Path) -> None:
    """Longer than the windows, prompt and sample both, beside samples of the base model."""
    _, driver = family
    revision = export(driver, "run", tmp_path / "revision")
    prompt = np.arange(5, 25, dtype=np.int32)
    request = Sample(revision, prompt, 2, SamplingParams(max_tokens=20, seed=3), query=PromptQuery(last=999))
    base = Sample(None, prompt[:7], 1, SamplingParams(max_tokens=20, seed=4))
    sampled, _ = driver.together([request, base])
    assert isinstance(sampled, Sampled)
    for sequence in sampled.sequences:
        datum = next_token_datum(np.concatenate([prompt, sequence.tokens]))
        passed = driver.one(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True))
        np.testing.assert_allclose(passed.logprobs[0][len(prompt) - 1 :], sequence.logprobs, rtol=0, atol=BOUND)
        np.testing.assert_allclose(
            passed.logprobs[0][: len(prompt) - 1], sampled.prompt.logprobs[1:], rtol=0, atol=BOUND
        )
