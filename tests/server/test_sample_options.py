"""What a request of asample asks of the engine, and what of the engine's answer it gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mint.engine.core import Sample

from .inprocess import MODEL, Serve, World, play

PROMPT = [5, 6, 7, 8]


def request(sampler: str | None = None, prompt: list[int] = PROMPT, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": {"chunks": [{"tokens": prompt}]}, "sampling_params": {"max_tokens": 2}}
    return {**body, "sampling_session_id": sampler, **fields}


def command(world: World) -> Sample:
    """What the worker was asked last."""
    last = world.worker.executed[-1]
    assert isinstance(last, Sample)
    return last


def test_nothing_is_asked_that_was_not(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            answer = await world.alice.result("asample", request(await world.alice.sampler()))
            query = command(world).query
            assert (query.last, query.top, query.targets, query.alternatives) == (0, 0, None, 0)
            assert (command(world).top_logprobs, command(world).stream) == (0, False)
            assert set(answer) == {"type", "sequences", "prompt_cache_hit_tokens"}
            assert set(answer["sequences"][0]) == {"stop_reason", "tokens", "logprobs"}

    play(scene)


def test_likeliest_tokens_of_prompt_and_sample(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            fields = {"topk_prompt_logprobs": 2, "topk_sample_logprobs": 1, "prompt_logprobs": True}
            sampler = await world.alice.sampler()
            answer = await world.alice.result("asample", request(sampler, **fields))
            assert answer["prompt_logprobs"] == [None, -1, -1, -1]
            assert answer["topk_prompt_logprobs"] == [None, *[[[1, -0.125], [2, -0.25]]] * 3]
            assert answer["sequences"][0]["topk_logprobs"] == [[[1, -0.125]]] * 2
            del fields["prompt_logprobs"]
            answer = await world.alice.result("asample", request(sampler, **fields))
            assert "prompt_logprobs" not in answer
            assert len(answer["topk_prompt_logprobs"]) == 4

    play(scene)


def test_the_last_of_a_prompt(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            fields = {"topk_prompt_logprobs": 1, "prompt_logprobs": True, "prompt_logprobs_last_n": 2}
            answer = await world.alice.result("asample", request(await world.alice.sampler(), **fields))
            assert command(world).query.last == 2
            assert answer["prompt_logprobs"] == [None, None, -1, -1]
            assert answer["topk_prompt_logprobs"] == [None, None, [[1, -0.125]], [[1, -0.125]]]

    play(scene)


def test_targets_and_alternatives(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            targets = {"data": [8, -1, 16], "dtype": "int64", "shape": [3, 1]}
            fields = {"target_prompt_logprobs": targets, "prompt_alt_tokens_k": 2}
            answer = await world.alice.result("asample", request(await world.alice.sampler(), **fields))
            query = command(world).query
            assert query.targets is not None
            assert (query.targets.tolist(), query.alternatives, query.last) == ([[8], [-1], [16]], 2, 0)
            assert answer["target_prompt_logprobs"] == {"data": [-1, 0, -2], "dtype": "float32", "shape": [3, 1]}
            tokens = {"data": [1, 2] * 3, "dtype": "int64", "shape": [3, 2]}
            logprobs = {"data": [-0.125, -0.25] * 3, "dtype": "float32", "shape": [3, 2]}
            assert answer["prompt_alt_tokens"] == {"tokens": tokens, "logprobs": logprobs}

    play(scene)


def test_sparse_targets_reach_the_engine_without_their_gaps(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            layout = {"shape": [3, 1 << 40], "sparse_crow_indices": [0, 0, 2, 2], "sparse_col_indices": [7, 1 << 39]}
            targets = {"data": [8, 16], "dtype": "int64", **layout}
            answer = await world.alice.result(
                "asample", request(await world.alice.sampler(), target_prompt_logprobs=targets)
            )
            np.testing.assert_array_equal(command(world).query.targets, [[-1, -1], [8, 16], [-1, -1]])
            assert answer["target_prompt_logprobs"] == {"data": [-1, -2], "dtype": "float32", **layout}

    play(scene)


def test_of_one_token_there_is_nothing_to_tell(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            fields = {"prompt_logprobs": True, "topk_prompt_logprobs": 3, "prompt_alt_tokens_k": 2}
            answer = await world.alice.result("asample", request(await world.alice.sampler(), [5], **fields))
            assert (answer["prompt_logprobs"], answer["topk_prompt_logprobs"]) == ([None], [None])
            assert answer["prompt_alt_tokens"]["tokens"] == {"data": [], "dtype": "int64", "shape": [0, 2]}

    play(scene)


def test_tokens_that_were_at_hand_are_told(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            hits = [
                (await world.alice.result("asample", request(sampler, num_samples=4)))["prompt_cache_hit_tokens"]
                for _ in range(2)
            ]
            assert hits == [0, 3]

    play(scene)


def test_stability_and_provenance_are_ignored(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            ignored = {"record_stability_info": True, "model_input_spans": [{"prompt_tokens": {}}]}
            answer = await world.alice.result("asample", request(await world.alice.sampler(), **ignored))
            assert len(answer["sequences"]) == 1

    play(scene)


def test_a_sample_without_a_session(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            for source in ({"base_model": MODEL}, {"model_path": path}, {"base_model": MODEL, "model_path": path}):
                # a number without a session is nobody's: each is a request of its own
                first, second = [await world.alice.ok("asample", request(seq_id=0, **source)) for _ in range(2)]
                assert first["request_id"] != second["request_id"]
                assert len((await world.alice.retrieve(first["request_id"]))["sequences"]) == 1
                await world.alice.retrieve(second["request_id"])
                assert (command(world).revision is not None) == ("model_path" in source)
            for source, status in (({"model_path": path}, 403), ({"base_model": MODEL, "model_path": f"{path}x"}, 404)):
                assert (await world.bob.post("asample", request(**source))).status_code == status

    play(scene)


def test_answers_beyond_all_measure_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_TOKENS", "MAX_DRAWN"):
        monkeypatch.setattr(f"mint.server.operations.sampling.{limit}", 20)
    cases: dict[str, dict[str, Any]] = {
        "num_samples": {"num_samples": 11},
        "topk_sample_logprobs": {"num_samples": 2, "topk_sample_logprobs": 6},
        "topk_prompt_logprobs": {"topk_prompt_logprobs": 7},
        "prompt_alt_tokens_k": {"prompt_alt_tokens_k": 7},
    }

    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            for field, fields in cases.items():
                response = await world.alice.post("asample", request(sampler, **fields))
                assert (response.status_code, response.json()["field"]) == (400, field)
                assert "20" in response.json()["detail"]
                less = {name: value - 1 for name, value in fields.items()}
                await world.alice.result("asample", request(sampler, **less))

    play(scene)
