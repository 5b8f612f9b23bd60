"""What tests of policies over HTTP have in common: requests, and what is shown to a policy."""

from __future__ import annotations

import base64
import re
from typing import Any

import httpx
import numpy as np

from mint.openpi.images import encode_image
from tests.policies.support import SIZE

from .live import ALICE, LiveServer

SMALL = "openpi/pi0-fast-tiny"


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def result(server: LiveServer, path: str, body: object, key: str = ALICE) -> Any:
    """Submit, and ask until there is one: a worker may be starting again."""
    request_id = ok(server.post(path, body, key))["request_id"]
    while (answer := server.post("retrieve_future", {"request_id": request_id}, key)).status_code == 408:
        pass
    return ok(answer)


def session(server: LiveServer) -> str:
    return str(ok(server.post("create_session", {}))["session_id"])


def run(server: LiveServer, model: str = SMALL) -> str:
    lora = {"rank": 8, "seed": 1}
    body = {"session_id": session(server), "model_seq_id": 0, "base_model": model, "lora_config": lora}
    return str(result(server, "create_model", body)["model_id"])


def tensor(values: list[Any], dtype: str = "float32") -> dict[str, Any]:
    return {"data": values, "dtype": dtype, "shape": [len(values)]}


def png(pixels: np.ndarray) -> str:
    return base64.b64encode(encode_image(pixels.astype(np.uint8))).decode()


def picture(seed: int) -> str:
    return png(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)))


def chunks(seed: int = 0, prefix: tuple[int, ...] = (11, 12, 13)) -> list[dict[str, Any]]:
    images = [{"type": "image", "format": "png", "data": picture(seed + camera)} for camera in range(3)]
    return [*images, {"type": "encoded_text", "tokens": list(prefix)}]


def datum(seed: int = 0, **inputs: Any) -> dict[str, Any]:
    given = {
        "state": tensor([0.1] * 8),
        "target_tokens": tensor([21, 22, 23], "int64"),
        "weights": tensor([1.0, 0.5, 1.0]),
        "token_ar_mask": tensor([1, 1, 1], "int32"),
        **inputs,
    }
    present = {name: value for name, value in given.items() if value is not None}
    return {"model_input": {"chunks": chunks(seed)}, "loss_fn_inputs": present}


def step(run_id: str, seq_id: int, data: list[dict[str, Any]], loss_fn: str = "cross_entropy") -> dict[str, Any]:
    inner = {"loss_fn": loss_fn, "loss_fn_config": None, "data": data}
    adam = {"learning_rate": 1e-2}
    return {"model_id": run_id, "seq_id": seq_id, "adam_params": adam, "forward_backward_input": inner}


def acting(server: LiveServer, **source: str) -> str:
    body = {"session_id": session(server), **source}
    return str(ok(server.post("mint/action_sessions", body))["action_session_id"])


def observation(seed: int = 0, prefix: tuple[int, ...] = (11, 12, 13)) -> dict[str, Any]:
    return {"model_input": {"chunks": chunks(seed, prefix)}, "state": tensor([0.1] * 8)}


def refused(response: httpx.Response, message: str, field: str) -> None:
    assert response.status_code == 400, response.text
    answer = response.json()
    assert re.search(message, answer["detail"]), answer
    assert answer["field"].startswith(field), answer
