"""Forms of the SDK's routes that other public clients send."""

from __future__ import annotations

from mint.engine.core import CreateRun

from .inprocess import MODEL, Serve, play

PROMPT = {"chunks": [{"tokens": [5, 6, 7]}]}


def test_log_probabilities_of_a_prompt(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            answer = await world.alice.result("compute_logprobs", {"base_model": MODEL, "prompt": PROMPT})
            assert answer["prompt_logprobs"][0] is None
            assert len(answer["prompt_logprobs"]) == 3
            refused = await world.alice.post("compute_logprobs", {"prompt": PROMPT})
            assert (refused.status_code, refused.json()["field"]) == (400, "base_model")
            refused = await world.alice.post("compute_logprobs", [1])
            assert (refused.status_code, refused.json()["field"]) == (400, "body")

    play(scene)


def test_a_run_from_a_checkpoint(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            body = {"session_id": session, "model_seq_id": 1, "path": path}
            made = await world.alice.result("create_model_from_state", body)
            assert made["model_id"] == f"{session}:train:1"
            assert world.worker.times(CreateRun) == 1

    play(scene)
