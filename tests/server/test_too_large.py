"""Bodies over the limit, from the official SDK over a real connection: refused, and the run goes on."""

from __future__ import annotations

import asyncio

import pytest
import tinker

import mint
import mint.mint as mintx
from mint import types
from mint.engine.core import ReverseKL, TrainStep

from .inprocess import ALICE, MODEL, Serve, listening, play

LIMIT = 20_000
SECONDS = 10


def train(url: str, tokens: int) -> None:
    adam, small = types.AdamParams(), [5, 6, 7]

    def step(run: tinker.TrainingClient, tokens: list[int]) -> tinker.APIFuture[types.ForwardBackwardOutput]:
        datum = types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs={"target_tokens": tokens})
        return mintx.train_step(run, [datum], "cross_entropy", adam)

    with mint.ServiceClient(base_url=url, api_key=ALICE) as service:
        run = service.create_lora_training_client(MODEL, rank=4).result(SECONDS)
        large = step(run, [7] * tokens)
        larger = mintx.forward_backward_reverse_kl(run, [mintx.ReverseKLDatum([7] * tokens, small, small)])
        after = step(run, small)
        for refused in (large, larger):
            with pytest.raises(tinker.APIStatusError, match="larger than 20000 bytes") as caught:
                refused.result(SECONDS)
            assert caught.value.status_code == 413
        assert after.result(SECONDS).metrics["loss:sum"] == 2.0


@pytest.mark.parametrize("tokens", [LIMIT, 100 * LIMIT])
def test_a_run_does_not_wait_for_what_was_too_large(serve: Serve, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")

    async def scene() -> None:
        async with serve(max_body_bytes=LIMIT) as world, listening(world) as url:
            await asyncio.to_thread(train, url, tokens)
            assert world.worker.times(TrainStep) == 1
            assert world.worker.times(ReverseKL) == 0

    play(scene)
