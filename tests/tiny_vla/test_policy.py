"""The built-in base of robot policies: what is shipped, and the recipe's own parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

import mint.mint as mintx
from mint.openpi.images import pixel_values
from mint.tiny_vla import model_path
from mint.tiny_vla.reaching import ACTION_DIM, HORIZON, Reaching, expert, instruction, render, scenes
from mint.tiny_vla.recipe.__main__ import load
from mint.tiny_vla.recipe.policy import Policy, mask_of, success
from mint.tiny_vla.recipe.tokens import train_tokenizer


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(model_path())


def test_both_geometries_together_are_small() -> None:
    folders = [model_path(tokens) for tokens in (16, 256)]
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < 2_000_000
    with pytest.raises(ValueError, match="tokens_per_image is 64; there are weights for 16 and 256"):
        model_path(64)


@pytest.mark.parametrize("tokens_per_image", [16, 256])
def test_transformers_loads_every_weight(tokens_per_image: int) -> None:
    folder = model_path(tokens_per_image)
    model, info = PaliGemmaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    pixels = torch.from_numpy(pixel_values(np.zeros((9, 9, 3), np.uint8), vision["image_size"]))
    assert model.get_image_features(pixel_values=pixels[None]).pooler_output.shape == (1, tokens_per_image, 64)


def test_the_wide_geometry_has_the_same_weights_but_for_places() -> None:
    few, many = (
        PaliGemmaForConditionalGeneration.from_pretrained(model_path(tokens)).state_dict() for tokens in (16, 256)
    )
    different = [name for name in few if few[name].shape != many[name].shape or not torch.equal(few[name], many[name])]
    assert [name.rpartition(".")[0].rpartition(".")[2] for name in different] == ["position_embedding"]


def test_the_base_does_its_own_task_and_not_the_mirrored_one(policy: Policy) -> None:
    assert success(policy, seed=7, mirrored=False, episodes=20) >= 0.85
    assert success(policy, seed=7, mirrored=True, episodes=20) <= 0.35
    assert success(policy, seed=7, mirrored=False, episodes=20, blind=True) <= 0.35


def test_statistics_and_tokens_are_those_of_the_task(policy: Policy) -> None:
    positions, targets = scenes(np.random.default_rng(0), 40)
    chunks = expert(positions, targets, mirrored=True)
    for chunk, tokens in zip(chunks, policy.targets(chunks), strict=True):
        decoded = policy.tokens.actions(tokens, HORIZON, ACTION_DIM)
        assert decoded.ok
        np.testing.assert_allclose(policy.statistics["actions"].unnormalize(decoded.actions), chunk, atol=2e-3)
    prefix = policy.tokens.tokenizer.decode(policy.prefixes(positions, mirrored=True)[0])
    assert instruction(mirrored=True) in prefix


def test_the_recipe_makes_the_tokenizer_that_is_shipped(policy: Policy) -> None:
    assert train_tokenizer().get_vocab() == policy.tokens.tokenizer.get_vocab()


def test_the_mask_is_that_of_the_cumulative_sum() -> None:
    causal = torch.tensor([[0, 0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1, 1]])
    mask = mask_of(causal)[:, 0]
    for row, ones in enumerate(causal.tolist()):
        for i in range(7):
            for j in range(7):
                assert (mask[row, i, j] == 0) == (sum(ones[: j + 1]) <= sum(ones[: i + 1]))


def test_no_target_is_told_by_those_behind_it(policy: Policy) -> None:
    arena = Reaching.start(0, 2)
    prefixes = policy.prefixes(arena.positions, mirrored=False)
    (target,) = policy.targets(expert(arena.positions, arena.targets)[:1])
    changed = [*target[:-2], 7, 8]
    with torch.inference_mode():
        features = policy.features(render(arena.positions, arena.targets))
        logits = policy.logits(features, prefixes, [target, changed])
        single = policy.logits(features[:1], prefixes[:1], [changed])
    last = features.shape[1] + len(prefixes[0]) + len(target) - 2
    torch.testing.assert_close(logits[0, :last], single[0, :last])
    assert not torch.allclose(logits[0, last : last + 2], single[0, last : last + 2])


def test_a_folder_is_all_that_a_client_needs() -> None:
    processor = mintx.openpi.OpenPIProcessor.load(model_path(256))
    assert processor.tokens_per_image == 256
    images = {camera: views[0] for camera, views in Reaching.start(0, 1).images().items()}
    observation = processor.observation(images, "reach", [0.1, 0.2])
    assert observation.model_input.length > 3 * 256
