"""Datums of robot policies, and what they are refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mint.mint as mintx
from mint.openpi.images import decode_image, encode_image
from mint.openpi.statistics import Statistics
from tests.openpi.codecs import ACTION_DIM, HORIZON, policy_tokens, smooth_chunks

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
PNG, JPEG = encode_image(PIXELS), encode_image(PIXELS, "jpeg")
IMAGES = {"right_wrist_0_rgb": PNG, "base_0_rgb": JPEG, "left_wrist_0_rgb": PIXELS}


def built(**changed: Any) -> Any:
    parts = {
        "prefix_tokens": [11, 12, 13],
        "image_bytes_by_camera": IMAGES,
        "state": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "target_tokens": [21, 22],
        "weights": [1.0, 0.5],
        "token_ar_mask": [1, 1],
    }
    return mintx.build_openpi_fast_datum(**{**parts, **changed})


def test_a_datum_has_three_images_in_order_and_the_prefix() -> None:
    chunks = built().model_input.chunks
    assert [chunk.type for chunk in chunks] == ["image"] * 3 + ["encoded_text"]
    assert [chunk.format for chunk in chunks[:3]] == ["jpeg", "png", "png"]
    assert chunks[0].data == JPEG
    np.testing.assert_array_equal(decode_image(chunks[1].data, "png"), PIXELS)
    assert [chunk.expected_tokens for chunk in chunks[:3]] == [256] * 3
    assert list(chunks[3].tokens) == [11, 12, 13]


def test_its_inputs_are_typed_as_the_server_expects_them() -> None:
    inputs = built(logprobs=[-0.5, -1], advantages=[1, 2]).loss_fn_inputs
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in inputs.items()} == {
        "state": ("float32", [7]),
        "target_tokens": ("int64", [2]),
        "weights": ("float32", [2]),
        "token_ar_mask": ("int64", [2]),
        "logprobs": ("float32", [2]),
        "advantages": ("float32", [2]),
    }
    assert inputs["advantages"].data == [1.0, 2.0]
    assert set(built().loss_fn_inputs) == {"state", "target_tokens", "weights", "token_ar_mask"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_bytes_by_camera": {"base_0_rgb": PNG}}, "must have exactly"),
        ({"image_bytes_by_camera": {**IMAGES, "front": PNG}}, "must have exactly"),
        ({"image_bytes_by_camera": {**IMAGES, "base_0_rgb": b"GIF89a"}}, "base_0_rgb is neither PNG nor JPEG"),
        ({"image_bytes_by_camera": {**IMAGES, "base_0_rgb": PIXELS / 255}}, "image must be uint8"),
        ({"weights": [1.0]}, "of one length"),
        ({"token_ar_mask": [1, 1, 1]}, "of one length"),
        ({"target_tokens": [], "weights": [], "token_ar_mask": []}, "of one length, at least 1"),
        ({"target_tokens": [[21, 22]]}, "of one length"),
        ({"target_tokens": [21.5, 22]}, "target_tokens must be whole numbers"),
        ({"token_ar_mask": [1, 0.5]}, "token_ar_mask must be whole numbers"),
        ({"prefix_tokens": []}, "at least one token"),
        ({"state": [[0.0]]}, "state must be a vector"),
        ({"logprobs": [-1.0, -1.0]}, "given together"),
        ({"advantages": [-1.0, -1.0]}, "given together"),
        ({"logprobs": [-1.0], "advantages": [1.0]}, "of one length"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        built(**changed)


@pytest.fixture
def processor() -> Any:
    statistics = {
        "state": Statistics.of(np.random.default_rng(1).normal(3, 2, (500, 4))),
        "actions": Statistics.of(smooth_chunks(200) * 5 + 1),
    }
    return mintx.openpi.OpenPIProcessor(policy_tokens(), statistics, tokens_per_image=16)


def test_a_demonstration_says_what_was_done_and_is_read_back(processor: Any) -> None:
    chunk = smooth_chunks(1, seed=2)[0] * 5 + 1
    observation = processor.observation(IMAGES, "Lift it", [3.0, 3.0, 5.0, 1.0])
    datum = processor.demonstration(observation, chunk)
    prefix = policy_tokens().tokenizer.decode(list(datum.model_input.chunks[3].tokens)[1:])
    assert prefix.startswith("Task: lift it, State: 1")
    assert datum.model_input.chunks[0].expected_tokens == 16
    assert datum.loss_fn_inputs["state"].data == observation.state.tolist()
    decoded = processor.decode(datum.loss_fn_inputs["target_tokens"].data, HORIZON, ACTION_DIM)
    assert decoded.ok
    assert np.abs(decoded.actions - chunk).max() < 0.16 * 5


def test_experience_has_one_advantage_for_all_its_tokens(processor: Any) -> None:
    observation = processor.observation(IMAGES, "x", [0.0])
    inputs = processor.experience(observation, [4, 5, 6], [-1.0, -2.0, -3.0], 0.5).loss_fn_inputs
    assert inputs["advantages"].data == [0.5] * 3
    assert inputs["weights"].data == [1.0] * 3
    assert inputs["logprobs"].data == [-1.0, -2.0, -3.0]
    with pytest.raises(ValueError, match="of one length"):
        processor.experience(observation, [4, 5, 6], [-1.0], 0.5)


def test_a_robot_without_statistics_of_something_is_told(processor: Any) -> None:
    blind = mintx.openpi.OpenPIProcessor(processor.tokens, {})
    with pytest.raises(ValueError, match=r"the statistics have \[\], not state"):
        blind.observation(IMAGES, "x", [0.0])
    with pytest.raises(ValueError, match="values have 5 dimensions, the statistics 4"):
        processor.observation(IMAGES, "x", [0.0] * 5)


def test_a_folder_of_a_model_that_sees_nothing_has_no_processor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 512}}')
    with pytest.raises(ValueError, match="has no vision_config"):
        mintx.openpi.OpenPIProcessor.load(tmp_path)
