"""Robot policies with the official SDK: images as it sends them, and MinT's helpers on top of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tinker

import mint
import mint.mint as mintx
from mint.openpi import CAMERA_LAYOUT, OPENPI_FAST_MODEL

from .live import ALICE, LiveServer


@pytest.fixture
def service(policies: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[mint.ServiceClient]:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with mint.ServiceClient(base_url=policies.url, api_key=ALICE) as client:
        yield client


def datum(seed: int = 0, **policy: list[float]) -> tinker.Datum:
    rng = np.random.default_rng(seed)
    return mintx.build_openpi_fast_datum(
        prefix_tokens=[11, 12, 13],
        image_bytes_by_camera={camera: rng.integers(0, 256, (30, 40, 3)).astype(np.uint8) for camera in CAMERA_LAYOUT},
        state=[0.1] * 8,
        target_tokens=[21, 22],
        weights=[1.0, 1.0],
        token_ar_mask=[1, 1],
        **policy,
    )


def test_the_sdk_trains_a_policy(service: mint.ServiceClient) -> None:
    """The same data by forward_backward and optim_step, and by train_step: the same, bit for bit."""
    data, adam = [datum(0), datum(1)], tinker.AdamParams(learning_rate=1e-2)
    one, other = (service.create_lora_training_client(OPENPI_FAST_MODEL, rank=16, seed=1).result() for _ in range(2))
    two = mintx.OpenPITrainingClient(other)
    for _ in range(2):
        passed = one.forward_backward(data, "cross_entropy").result()
        one.optim_step(adam).result()
        stepped = two.train_step(data, "cross_entropy", adam_params=adam).result()
        for ours, theirs in zip(passed.loss_fn_outputs, stepped.loss_fn_outputs, strict=True):
            assert ours["logprobs"].tolist() == theirs["logprobs"].tolist()
    assert passed.metrics["loss:mean"] == stepped.metrics["loss:mean"] == pytest.approx(passed.metrics["loss:sum"] / 2)


def test_the_published_helper(service: mint.ServiceClient) -> None:
    client = mintx.create_openpi_training_client(service)
    answer = client.train_step([datum()], "cross_entropy").result()
    logprobs = answer.loss_fn_outputs[0]["logprobs"].tolist()
    again = client.train_step([datum(0, logprobs=logprobs, advantages=[1.0, -1.0])], "ppo").result()
    assert np.isfinite(again.metrics["loss:sum"])
    path = client.save_weights_for_sampler("helper").result().path
    session = mintx.create_action_session(service, model_path=path).result()
    see = mintx.openpi.Observation(datum().model_input, np.full(8, 0.1, np.float32))
    act = session.act(see).result()
    batch = session.act_batch([see, see]).result()
    assert act.actions.shape == (5, 2)  # the tiny policy moves an arm in a plane
    assert [each.tokens for each in batch] == [act.tokens] * 2
    session.delete().result()
    with pytest.raises(tinker.NotFoundError):
        session.act(see).result()
