"""Images for a chat model that sees, with the official SDK, against what transformers computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration

import mint
from mint.openpi.images import encode_image
from mint.tiny import model_path

from .live import ALICE, LiveServer

SIZE, IMAGE_TOKENS, IMAGE_ID = 28, 4, 2047
MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.4, 0.3)


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llava-random"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 2048,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "eos_token_id": 2,
            **sizes,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": SIZE,
            "patch_size": 14,
            "num_attention_heads": 2,
            **sizes,
        },
        image_token_index=IMAGE_ID,
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():  # so that images matter
        model.model.multi_modal_projector.linear_2.weight.mul_(20)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(f'{{"image_mean": {list(MEAN)}, "image_std": {list(STD)}}}')
    return folder


@pytest.fixture(scope="module")
def server(llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    running = LiveServer(tmp_path_factory.mktemp("llava"), "--model", f"llava={llava_dir}").start()
    yield running
    assert running.stop() == 0, running.output
    assert "Traceback" not in running.output


@pytest.fixture
def service(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with mint.ServiceClient(base_url=server.url, api_key=ALICE) as client:
        yield client


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


BEFORE, BEHIND = [5, 6, 7], [8, 9, 10, 11]
TOKENS = len(BEFORE) + IMAGE_TOKENS + len(BEHIND)


def shown(seed: int, expected_tokens: int | None = IMAGE_TOKENS) -> tinker.ModelInput:
    image = tinker.types.ImageChunk(data=encode_image(picture(seed)), format="png", expected_tokens=expected_tokens)
    return tinker.ModelInput(
        chunks=[tinker.EncodedTextChunk(tokens=BEFORE), image, tinker.EncodedTextChunk(tokens=BEHIND)]
    )


def reference(folder: Path, seed: int, more: list[int]) -> Tensor:
    """Log-probabilities (N, V) of transformers' own model, which looks for the image's tokens by their id."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    pixels = (torch.from_numpy(picture(seed)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    ids = torch.tensor([[*BEFORE, *[IMAGE_ID] * IMAGE_TOKENS, *BEHIND, *more]])
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, pixel_values=pixels.permute(2, 0, 1)[None].double()).logits[0]
    return logits.log_softmax(-1)


def datum(seed: int) -> tinker.Datum:
    """Targets count the image's tokens, of which none is to be learned."""
    weights = [0.0] * (len(BEFORE) + IMAGE_TOKENS - 1) + [1.0] * (len(BEHIND) + 1)
    inputs: dict[str, Any] = {"target_tokens": list(range(100, 100 + TOKENS)), "weights": weights}
    return tinker.Datum(model_input=shown(seed), loss_fn_inputs=inputs)


def test_training_and_sampling_see_the_image(service: mint.ServiceClient, llava_dir: Path) -> None:
    assert (reference(llava_dir, 0, [])[-1] - reference(llava_dir, 1, [])[-1]).abs().max() > 1e-2
    run = service.create_lora_training_client("llava", rank=4).result()
    passed = run.forward_backward([datum(0), datum(1), datum(0)], "cross_entropy").result()
    for seed, output in zip((0, 1, 0), passed.loss_fn_outputs, strict=True):
        expected = reference(llava_dir, seed, [])[range(TOKENS), range(100, 100 + TOKENS)]
        np.testing.assert_allclose(output["logprobs"].tolist(), expected, rtol=0, atol=1e-4)
    assert run.optim_step(tinker.AdamParams(learning_rate=1e-2)).result().metrics["grad_norm"] > 0
    sampler = service.create_sampling_client(base_model="llava").result()
    greedy = tinker.SamplingParams(max_tokens=5, temperature=0.0, stop=[])
    for seed in (0, 1):
        for _ in range(2):  # also when the beginning is known
            (drawn,) = sampler.sample(shown(seed), 1, greedy).result().sequences
            rows = reference(llava_dir, seed, drawn.tokens[:-1])[-5:]
            assert drawn.tokens == rows.argmax(1).tolist()
            np.testing.assert_allclose(drawn.logprobs, rows.max(1).values, rtol=0, atol=1e-4)


def test_what_is_refused(service: mint.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="llava").result()
    params = tinker.SamplingParams(max_tokens=1)
    with pytest.raises(tinker.BadRequestError, match="makes 4 tokens of an image"):
        sampler.sample(shown(0, expected_tokens=5), 1, params).result()
    with pytest.raises(tinker.BadRequestError, match="prompt_logprobs: is not served for a prompt with images"):
        sampler.sample(shown(0), 1, params, include_prompt_logprobs=True).result()
    assert sampler.sample(shown(0, expected_tokens=None), 1, params).result().sequences
