"""A robot policy over plain HTTP, without the SDK: a session, a run, a training step, a checkpoint, an action.

For robots that are not programmed in Python, to see what is sent. Run it with
`mint run --model openpi/pi0-fast-tiny-256 examples/vla_http.py`, or against a server of your own.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from typing import Any

import httpx
from PIL import Image
from rich.console import Console

BASE_MODEL = "openpi/pi0-fast-tiny-256"
PREFIX, TARGET = [11, 12, 13], [21, 22]
STATE = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
COLOURS = ("red", "green", "blue")

console = Console(emoji=False, highlight=False, soft_wrap=True)


class Server:
    """Sends JSON, and waits for what is not answered at once."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v1/", headers={"X-API-Key": key}, timeout=60)

    def call(self, method: str, path: str, body: object = None) -> Any:
        response = self.http.request(method, path, json=body)
        if response.is_error:
            raise SystemExit(f"{method} {path}: {response.status_code} {response.text}")
        return response.json()

    def operation(self, path: str, body: object) -> Any:
        """Its result; a server that is busy says `try_again`."""
        accepted = self.call("POST", path, body)
        while True:
            answer = self.call("POST", "retrieve_future", {"request_id": accepted["request_id"]})
            if answer.get("type") != "try_again":
                break
        if "error" in answer:
            raise SystemExit(f"{path}: {answer['error']}")
        return answer


def image(colour: str) -> dict[str, Any]:
    """A chunk of one camera."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image", "format": "png", "expected_tokens": 256, "data": data}


def tensor(values: list[Any], dtype: str) -> dict[str, Any]:
    return {"data": values, "dtype": dtype, "shape": [len(values)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", default=BASE_MODEL)
    arguments = parser.parse_args()
    server = Server(os.environ["MINT_BASE_URL"], os.environ["MINT_API_KEY"])

    session = server.call("POST", "create_session", {"tags": ["vla_http"]})["session_id"]
    lora = {"rank": 16, "train_attn": True, "train_mlp": True, "train_unembed": True}
    create = {"session_id": session, "model_seq_id": 0, "base_model": arguments.base_model, "lora_config": lora}
    run = server.operation("create_model", create)["model_id"]
    info = server.call("POST", "get_info", {"model_id": run})
    console.print(f"run {run}, rank {info['lora_rank']}, on {info['model_data']['model_name']}")

    model_input = {"chunks": [*map(image, COLOURS), {"type": "encoded_text", "tokens": PREFIX}]}
    inputs = {
        "state": tensor(STATE, "float32"),
        "target_tokens": tensor(TARGET, "int64"),
        "weights": tensor([1.0, 1.0], "float32"),
        "token_ar_mask": tensor([1, 1], "int32"),
    }
    datum = {"model_input": model_input, "loss_fn_inputs": inputs}
    step = {
        "model_id": run,
        "adam_params": {"learning_rate": 1e-2},
        "forward_backward_input": {"loss_fn": "cross_entropy", "loss_fn_config": {}, "data": [datum]},
    }
    for seq_id in range(1, 6):
        metrics = server.operation("train_step", {"type": "train_step", "seq_id": seq_id, **step})["metrics"]
        console.print(f"train_step {seq_id}: loss {metrics['loss:mean']:.3f}")

    saved = server.operation("save_weights_for_sampler", {"model_id": run, "path": "first", "seq_id": 6})["path"]
    live = [model["model_id"] for model in server.call("GET", "models")["models"]]
    console.print(f"saved {saved}; {len(live)} run is live")
    server.call("DELETE", f"models/{run}")

    source = {"session_id": session, "model_path": saved}
    policy = server.call("POST", "mint/action_sessions", source)["action_session_id"]
    observation = {"model_input": model_input, "state": tensor(STATE, "float32")}
    acted = server.operation(f"mint/action_sessions/{policy}/act", {"observation": observation})
    console.print(f"without its run, it says {acted['tokens'][:6]}…: actions {acted['actions']['shape']}, ", end="")
    console.print("a whole chunk" if acted["decode_ok"] else "which is no whole chunk after five steps of training")
    server.call("DELETE", f"mint/action_sessions/{policy}")


if __name__ == "__main__":
    main()
