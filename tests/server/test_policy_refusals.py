"""Requests to robot policies that are refused: images, data, settings; each with its field, and cheaply."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from mint.openpi.images import encode_image

from .live import ALICE, LiveServer
from .policies import (
    SMALL,
    acting,
    chunks,
    datum,
    observation,
    picture,
    refused,
    result,
    run,
    session,
    step,
    tensor,
)


def bomb(width: int, height: int) -> str:
    """A PNG whose header says so many pixels, and that has hardly any."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in (header, body)]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


WHOLE = base64.b64decode(picture(0))
SCANS = base64.b64encode(encode_image(np.zeros((40, 40, 3), np.uint8), "jpeg") + b"\xff\xda" * 100).decode()
IMAGES = {
    "bomb": ({"data": bomb(60000, 60000)}, "3600000000 pixels|60000 × 60000"),
    "truncated": ({"data": base64.b64encode(WHOLE[: len(WHOLE) // 2]).decode()}, "is no png"),
    "no image": ({"data": base64.b64encode(b"hello").decode()}, "is no png"),
    "empty": ({"data": ""}, "is no png"),
    "another format": ({"format": "jpeg"}, "is no jpeg"),
    "a format that is not read": ({"format": "gif"}, "gif"),
    "no base64": ({"data": "!!!"}, "base64"),
    "many scans": ({"data": SCANS, "format": "jpeg"}, "scans"),
    "other tokens": ({"expected_tokens": 256}, "makes 4 tokens"),
    "a pointer": ({"type": "image_asset_pointer"}, "image_asset_pointer"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_cannot_be_used(policies: LiveServer, name: str) -> None:
    """In training and in acting alike; the field is the chunk."""
    changes, message = IMAGES[name]
    broken = chunks()
    broken[1] = {**broken[1], **changes}
    given = {**datum(), "model_input": {"chunks": broken}}
    response = policies.post("train_step", step(run(policies), 1, [datum(), given]))
    refused(response, message, "data[1].model_input.chunks[1]")
    assert response.json()["datum"] == 1
    path = f"mint/action_sessions/{acting(policies, base_model=SMALL)}/act"
    body = {"observation": {"model_input": {"chunks": broken}}}
    refused(policies.post(path, body), message, "observation.model_input.chunks[1]")


THREE = chunks()[:3]
INPUT = "data[0].model_input"
INPUTS = {
    "no images": (chunks()[3:], "exactly 3 images", f"{INPUT}.chunks"),
    "two images": (chunks()[1:], "exactly 3 images", f"{INPUT}.chunks"),
    "text in front": ([chunks()[3], *THREE], "exactly 3 images", f"{INPUT}.chunks"),
    "two texts": ([*chunks(), chunks()[3]], "exactly 3 images", f"{INPUT}.chunks"),
    "ids outside": (chunks(0, (11, 512)), "512 .*outside the vocabulary", INPUT),
    "over-long text": (chunks(0, (11,) * 300), "at most 256", INPUT),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_no_observations(policies: LiveServer, name: str) -> None:
    pieces, message, field = INPUTS[name]
    given = {**datum(), "model_input": {"chunks": pieces}}
    refused(policies.post("train_step", step(run(policies), 1, [given])), message, field)


SUPERVISION = [
    ({"target_tokens": tensor([1, -1, 2], "int64")}, "outside", "target_tokens"),
    ({"target_tokens": tensor([], "int64")}, "at least one", "target_tokens"),
    ({"token_ar_mask": tensor([1, 2, 1], "int64")}, "0 and 1", "token_ar_mask"),
    ({"token_ar_mask": tensor([1, 1], "int64")}, "length 2", "token_ar_mask"),
    ({"token_ar_mask": tensor([1, 1, 1])}, "integers", "token_ar_mask"),
    ({"token_ar_mask": None}, "missing", "token_ar_mask"),
    ({"weights": tensor([1.0])}, r"must be \(3,\)", "weights"),
    ({"weights": tensor([1.0, -1.0, 1.0])}, "below 0", "weights"),
    ({"logprobs": tensor([1.0] * 3)}, "missing", "advantages"),
    ({"state": {"data": [1, 2], "dtype": "float32", "shape": [1, 2]}}, "vector", "state"),
]


@pytest.mark.parametrize(("inputs", "message", "name"), SUPERVISION)
def test_supervision_that_is_none(policies: LiveServer, inputs: dict[str, Any], message: str, name: str) -> None:
    """In both forms. Nothing changes, and the number is spent: the run goes on with the next."""
    given, run_id = datum(**inputs), run(policies)
    refused(policies.post("train_step", step(run_id, 1, [given])), message, f"data[0].loss_fn_inputs.{name}")
    own = {
        "observation": {"model_input": given["model_input"], "state": given["loss_fn_inputs"].pop("state")},
        "supervision": given["loss_fn_inputs"],
    }
    body = {"model_id": run_id, "seq_id": 2, "loss_fn": "cross_entropy", "data": [own]}
    part = "observation" if name == "state" else "supervision"
    refused(policies.post("mint/vla/train_step", body), message, f"data[0].{part}.{name}")
    result(policies, "train_step", step(run_id, 3, [datum()]))


def test_losses_and_settings_that_are_not_served(policies: LiveServer) -> None:
    run_id = run(policies)
    for number, loss_fn in enumerate(("dro", "custom", "flow_matching"), 1):
        refused(policies.post("train_step", step(run_id, number, [datum()], loss_fn)), loss_fn, "loss_fn")
    actions = {"observation": observation(), "supervision": {"actions": [[0.0] * 7] * 10}}
    body = {"model_id": run_id, "loss_fn": "flow_matching", "data": [actions]}
    refused(policies.post("mint/vla/train_step", body), "pi0.5", "data[0].supervision.actions")
    create = {"session_id": session(policies), "model_seq_id": 0, "base_model": SMALL}
    lora = {"rank": 4, "train_vision": True}
    refused(policies.post("create_model", {**create, "lora_config": lora}), "vision", "lora_config.train_vision")
    refused(
        policies.post("create_model", {**create, "lora_config": {"rank": 4}, "rollout_correction_config": {}}),
        "rollout|served",
        "rollout_correction_config",
    )


def test_policies_and_text_models_do_not_stand_in_for_each_other(policies: LiveServer) -> None:
    prompt = {"prompt": {"chunks": [{"tokens": [5]}]}, "base_model": SMALL, "sampling_params": {"max_tokens": 1}}
    refused(policies.post("asample", prompt), "robot policy", "base_model")
    body = {"session_id": session(policies), "base_model": "mint/tiny"}
    refused(policies.post("mint/action_sessions", body), "no robot policy", "base_model")
    text = run(policies, "mint/tiny")
    refused(policies.post("train_step", step(text, 1, [datum()])), "text only", "data[0].model_input.chunks[0]")
    listed = httpx.get(f"{policies.url}/v1/models", headers={"Authorization": f"Bearer {ALICE}"}).json()["data"]
    assert [model["id"] for model in listed] == ["mint/tiny"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"observation": None}, "observation"),
        ({"observation": {**observation(), "state": [[1.0]]}}, "observation.state"),
    ],
)
def test_requests_to_act_that_are_refused(policies: LiveServer, changes: dict[str, Any], field: str) -> None:
    path = f"mint/action_sessions/{acting(policies, base_model=SMALL)}/act"
    response = policies.post(path, {"observation": observation(), **changes})
    assert (response.status_code, response.json()["field"]) == (400, field), response.text


def test_batches_have_a_limit(policies: LiveServer) -> None:
    path = f"mint/action_sessions/{acting(policies, base_model=SMALL)}/act_batch"
    refused(policies.post(path, {"observations": []}), "1 to 256", "observations")
    assert policies.post(path, {}).json()["field"] == "observations"
