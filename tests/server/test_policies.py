"""Robot policies over HTTP: the published demo, MinT's own form, acting, and that nothing is lost."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest

from mint.openpi import OPENPI_FAST_MODEL
from mint.openpi.images import encode_image

from .live import ALICE, BOB, LiveServer
from .policies import (
    SMALL,
    acting,
    datum,
    observation,
    ok,
    result,
    run,
    session,
    step,
    tensor,
)

# --- the published demo -------------------------------------------------------------------------------------

DOT = base64.b64encode(encode_image(np.zeros((1, 1, 3), np.uint8))).decode()
DEMO_CHUNK = {"type": "image", "format": "png", "expected_tokens": 256, "data": DOT}
DEMO_DATUM = {
    "model_input": {"chunks": [DEMO_CHUNK] * 3 + [{"type": "encoded_text", "tokens": [11, 12, 13]}]},
    "loss_fn_inputs": {
        "state": {"data": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "dtype": "float32", "shape": [7]},
        "target_tokens": {"data": [21, 22], "dtype": "int64", "shape": [2]},
        "weights": {"data": [1.0, 1.0], "dtype": "float32", "shape": [2]},
        "token_ar_mask": {"data": [1, 1], "dtype": "int32", "shape": [2]},
    },
}


def loaded(server: LiveServer) -> dict[str, bool]:
    """Live runs, and whether each is in memory."""
    return {model["model_id"]: model["loaded"] for model in ok(server.get("models"))["models"]}


def test_the_published_demo(policies: LiveServer) -> None:
    """In its order; then the saved policy acts, and acts the same after its run is deleted."""
    session_id = session(policies)
    lora = {"rank": 16, "train_attn": True, "train_mlp": True, "train_unembed": True}
    create = {"session_id": session_id, "model_seq_id": 0, "base_model": OPENPI_FAST_MODEL, "lora_config": lora}
    run_id = result(policies, "create_model", create)["model_id"]
    info = ok(policies.post("get_info", {"model_id": run_id}))
    assert (info["model_data"]["model_name"], info["lora_rank"]) == (OPENPI_FAST_MODEL, 16)
    trained = {
        "type": "train_step",
        "model_id": run_id,
        "seq_id": 1,
        "adam_params": {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
        "forward_backward_input": {"loss_fn": "cross_entropy", "loss_fn_config": {}, "data": [DEMO_DATUM]},
    }
    answer = result(policies, "train_step", trained)
    assert answer["metrics"]["loss:mean"] == answer["metrics"]["loss:sum"] > 0
    assert len(answer["loss_fn_outputs"][0]["logprobs"]["data"]) == 2
    assert answer["metrics"]["loss:mean"] == pytest.approx(-np.mean(answer["loss_fn_outputs"][0]["logprobs"]["data"]))
    saved = result(policies, "save_weights_for_sampler", {"model_id": run_id, "path": "demo", "seq_id": 2})
    assert loaded(policies)[run_id]
    assert not ok(policies.get("models", BOB))["models"]
    policy = acting(policies, model_path=saved["path"])
    see = {"model_input": DEMO_DATUM["model_input"], "state": [0.0] * 7}
    before = result(policies, f"mint/action_sessions/{policy}/act", {"observation": see})
    deleted = httpx.delete(f"{policies.url}/api/v1/models/{run_id}", headers={"X-API-Key": ALICE})
    assert deleted.status_code == 200, deleted.text
    assert not loaded(policies)[run_id]
    after = result(policies, f"mint/action_sessions/{policy}/act", {"observation": see})
    assert before["tokens"] == after["tokens"]
    assert before["actions"] == after["actions"]


# --- training -----------------------------------------------------------------------------------------------


def test_all_ways_to_train_are_the_same(policies: LiveServer) -> None:
    """train_step, its own form, and forward_backward with optim_step: bit for bit; masks of both widths."""
    runs = [run(policies) for _ in range(3)]
    data = [datum(seed) for seed in range(2)]
    wide = tensor([1, 1, 1], "int64")
    seen = []
    for number in range(1, 4):
        first = result(policies, "train_step", step(runs[0], number, data))
        supervision = {**data[0]["loss_fn_inputs"], "token_ar_mask": [1, 1, 1]}
        del supervision["state"]
        own = [
            {"observation": {"model_input": each["model_input"], "state": [0.1] * 8}, "supervision": supervision}
            for each in data
        ]
        body = {"model_id": runs[1], "loss_fn": "cross_entropy", "data": own, "adam_params": {"learning_rate": 1e-2}}
        second = result(policies, "mint/vla/train_step", body)
        inner = {"loss_fn": "cross_entropy", "data": [datum(seed, token_ar_mask=wide) for seed in range(2)]}
        third = result(
            policies,
            "forward_backward",
            {"model_id": runs[2], "seq_id": 2 * number - 1, "forward_backward_input": inner},
        )
        optim = {"model_id": runs[2], "seq_id": 2 * number, "adam_params": {"learning_rate": 1e-2}}
        result(policies, "optim_step", optim)
        assert first["loss_fn_outputs"] == second["loss_fn_outputs"] == third["loss_fn_outputs"]
        seen.append(first["metrics"]["loss:mean"])
    assert seen[2] < seen[0]


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo"])
def test_policy_losses(policies: LiveServer, loss_fn: str) -> None:
    run_id = run(policies)
    logprobs = result(policies, "train_step", step(run_id, 1, [datum()]))["loss_fn_outputs"][0]["logprobs"]["data"]
    more = {"logprobs": tensor(logprobs), "advantages": tensor([1.0, -1.0, 2.0]), "weights": None}
    answer = result(policies, "train_step", step(run_id, 2, [datum(**more)], loss_fn))
    ours = np.exp(np.array(answer["loss_fn_outputs"][0]["logprobs"]["data"]) - logprobs)
    advantages = np.array([1.0, -1.0, 2.0])
    terms = ours * advantages
    if loss_fn == "ppo":
        terms = np.minimum(terms, ours.clip(0.8, 1.2) * advantages)
    assert answer["metrics"]["loss:sum"] == pytest.approx(-terms.sum(), rel=1e-4)


@pytest.mark.slow
def test_nothing_is_lost_with_a_worker(policies: LiveServer) -> None:
    """Checkpoints, a replay of steps with images, and an action session that acts the same after it."""
    undisturbed, disturbed = run(policies), run(policies)
    losses: dict[str, list[float]] = {undisturbed: [], disturbed: []}
    policy = acting(policies, base_model=SMALL)
    before = result(policies, f"mint/action_sessions/{policy}/act", {"observation": observation()})
    for number in range(1, 5):
        for run_id, seen in losses.items():
            if run_id == disturbed and number == 3:
                for child in policies.workers:
                    child.kill()
            seen.append(
                result(policies, "train_step", step(run_id, number, [datum(number % 2)]))["metrics"]["loss:mean"]
            )
    np.testing.assert_allclose(losses[disturbed], losses[undisturbed], rtol=1e-5)
    saved = result(policies, "save_weights", {"model_id": disturbed, "path": "state", "seq_id": 5, "ttl_seconds": 3600})
    listed = ok(policies.get(f"training_runs/{disturbed}/checkpoints"))["checkpoints"]
    assert [(each["tinker_path"], each["expires_at"] is None) for each in listed] == [(saved["path"], False)]
    body = {"session_id": session(policies), "model_seq_id": 0, "path": saved["path"], "optimizer": True}
    loaded = result(policies, "load_weights", body)["model_id"]
    first = result(policies, "train_step", step(loaded, 1, [datum()]))
    second = result(policies, "train_step", step(disturbed, 6, [datum()]))
    assert first["loss_fn_outputs"] == second["loss_fn_outputs"]
    after = result(policies, f"mint/action_sessions/{policy}/act", {"observation": observation()})
    assert after["tokens"] == before["tokens"]


# --- acting -------------------------------------------------------------------------------------------------


def test_acting(policies: LiveServer) -> None:
    policy = f"mint/action_sessions/{acting(policies, base_model=SMALL)}"
    one = result(policies, f"{policy}/act", {"observation": observation()})
    assert one["type"] == "act"
    assert (one["actions"]["shape"], one["actions"]["dtype"]) == ([10, 7], "float32")
    assert len(one["actions"]["data"]) == 70
    assert len(one["tokens"]) == len(one["logprobs"])
    assert one["decode_ok"] is False  # a random policy says nothing that could be an action
    assert one["policy_timing"]["infer_ms"] > 0
    drawn = {"temperature": 1.0, "seed": 5, "max_tokens": 12}
    batch = {"observations": [observation(), observation(4), observation()], **drawn}
    answers = result(policies, f"{policy}/act_batch", batch)["results"]
    alone = result(policies, f"{policy}/act", {"observation": observation(), **drawn})
    assert alone["tokens"] == answers[0]["tokens"] != answers[2]["tokens"]
    assert len(answers) == 3
    np.testing.assert_allclose(alone["logprobs"], answers[0]["logprobs"], rtol=0, atol=1e-5)


def test_what_was_sampled_is_what_training_sees(policies: LiveServer) -> None:
    """The log-probabilities of an action's tokens are those that a pass computes: RL can rely on them."""
    drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 6}
    policy = f"mint/action_sessions/{acting(policies, base_model=SMALL)}"
    act = result(policies, f"{policy}/act", {"observation": observation(), **drawn})
    tokens = act["tokens"]
    inputs = {"target_tokens": tensor(tokens, "int64"), "weights": None}
    given = datum(0, **inputs, token_ar_mask=tensor([1] * len(tokens), "int64"))
    body = {
        "model_id": run(policies),
        "seq_id": 1,
        "forward_backward_input": {"loss_fn": "cross_entropy", "data": [given]},
    }
    passed = result(policies, "forward_backward", body)
    np.testing.assert_allclose(passed["loss_fn_outputs"][0]["logprobs"]["data"], act["logprobs"], rtol=0, atol=1e-5)


def test_an_action_session_ends(policies: LiveServer) -> None:
    name = acting(policies, base_model=SMALL)
    path = f"mint/action_sessions/{name}"
    assert policies.post(f"{path}/act", {"observation": observation()}, BOB).status_code == 403
    delete = {"url": f"{policies.url}/api/v1/{path}", "headers": {"X-API-Key": ALICE}}
    assert httpx.delete(delete["url"], headers={"X-API-Key": BOB}).status_code == 403  # type: ignore[arg-type]
    assert httpx.delete(**delete).status_code == 200  # type: ignore[arg-type]
    for response in (httpx.delete(**delete), policies.post(f"{path}/act", {"observation": observation()})):  # type: ignore[arg-type]
        assert (response.status_code, response.json()["field"]) == (404, "action_session_id")


def test_a_retry_is_the_same_operation(policies: LiveServer) -> None:
    path = f"mint/action_sessions/{acting(policies, base_model=SMALL)}/act"
    body = {"observation": observation(), "seq_id": 1}
    assert ok(policies.post(path, body))["request_id"] == ok(policies.post(path, body))["request_id"]
