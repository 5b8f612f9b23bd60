"""Bad requests: each named by field and datum, and nobody's work is touched by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mint.engine.core import CreateRun, ForwardBackward, Sample
from mint.wire import messages_pb2 as pb

from .inprocess import MODEL, PROTOBUF, Serve, World, datum, play

NAN = float("nan")
GOOD = datum()
LONG = range(5, 5 + 65)


def empty_chunk() -> pb.Datum:
    message = datum()
    message.model_input.add().encoded_text.tokens = b""
    return message


def without_tokens() -> pb.Datum:
    message = datum()
    del message.model_input[:]
    return message


def without_targets() -> pb.Datum:
    message = datum()
    del message.loss_fn_inputs["target_tokens"]
    return message


def odd_bytes() -> pb.Datum:
    message = datum()
    message.loss_fn_inputs["target_tokens"].dense += b"1"
    return message


def float_targets() -> pb.Datum:
    message = datum()
    tensor = pb.Tensor(dense=np.zeros(3, "<f4").tobytes(), dtype=pb.DTYPE_FLOAT32)
    message.loss_fn_inputs["target_tokens"].CopyFrom(tensor)
    return message


POLICY = {"logprobs": [-1.0] * 3, "advantages": [1.0] * 3}

PASSES: dict[str, tuple[pb.Datum, dict[str, Any], str]] = {
    "no tokens": (without_tokens(), {}, "data[1].model_input"),
    "empty chunk": (empty_chunk(), {}, "data[1].model_input.chunks[1]"),
    "negative id": (datum([5, -1, 7]), {}, "data[1].model_input"),
    "id beyond the vocabulary": (datum([5, 100, 7]), {}, "data[1].model_input"),
    "target beyond the vocabulary": (datum(targets=[6, 7, 100]), {}, "data[1].loss_fn_inputs.target_tokens"),
    "over-long": (datum(LONG, LONG), {}, "data[1].model_input"),
    "targets missing": (without_targets(), {}, "data[1].loss_fn_inputs.target_tokens"),
    "targets too short": (datum(targets=[6, 7]), {}, "data[1].loss_fn_inputs.target_tokens"),
    "targets no integers": (float_targets(), {}, "data[1].loss_fn_inputs.target_tokens"),
    "targets of odd length": (odd_bytes(), {}, "data[1].loss_fn_inputs.target_tokens"),
    "weights too long": (datum(weights=[1.0] * 4), {}, "data[1].loss_fn_inputs.weights"),
    "weight not a number": (datum(weights=[1.0, NAN, 1.0]), {}, "data[1].loss_fn_inputs.weights"),
    "advantage not a number": (
        datum(**{**POLICY, "advantages": [1.0, NAN, 1.0]}),
        {"loss_fn": "importance_sampling"},
        "data[1].loss_fn_inputs.advantages",
    ),
    "logprobs missing": (
        datum(advantages=POLICY["advantages"]),
        {"loss_fn": "ppo"},
        "data[1].loss_fn_inputs.logprobs",
    ),
}
WHOLE: dict[str, tuple[dict[str, Any], str]] = {
    "unknown loss": ({"loss_fn": "nonsense"}, "loss_fn"),
    "stable_reinforce": ({"loss_fn": "stable_reinforce"}, "loss_fn"),
    "unknown setting": ({"loss_fn_config": {"nonsense": 1.0}}, "loss_fn_config"),
    "text for a number": (
        {"loss_fn": "ppo", "loss_fn_config_v2": {"clip_low_threshold": pb.LossConfigValue(text="x")}},
        "loss_fn_config.clip_low_threshold",
    ),
    "setting not a number": (
        {"loss_fn": "ppo", "loss_fn_config": {"clip_low_threshold": NAN}},
        "loss_fn_config.clip_low_threshold",
    ),
}


async def goes_on(world: World, run: str, seq_id: int, bystander: str) -> None:
    """The run's next number is executed at once, and so is everyone else's work."""
    assert "metrics" in await world.alice.step(run, seq_id)
    assert "metrics" in await world.bob.step(bystander, seq_id)


def test_a_bad_datum_is_named(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            for case, (bad, fields, field) in PASSES.items():
                run, bystander = await world.alice.run(), await world.bob.run()
                await world.bob.step(bystander, 1)
                first = datum(**POLICY) if fields else GOOD
                response = await world.alice.pass_(run, 1, first, bad, **fields)
                answer = response.json()
                assert (response.status_code, answer["field"], answer["datum"]) == (400, field, 1), (case, answer)
                assert answer["detail"].startswith(field)
                await goes_on(world, run, 2, bystander)
            assert world.worker.times(ForwardBackward) == 0

    play(scene)


def test_a_bad_loss_is_named(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            for case, (fields, field) in WHOLE.items():
                run, bystander = await world.alice.run(), await world.bob.run()
                await world.bob.step(bystander, 1)
                response = await world.alice.pass_(run, 1, datum(**POLICY), **fields)
                assert (response.status_code, response.json()["field"]) == (400, field), (case, response.text)
                await goes_on(world, run, 2, bystander)

    play(scene)


def test_a_pass_without_data(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, bystander = await world.alice.run(), await world.bob.run()
            await world.bob.step(bystander, 1)
            body = pb.ForwardBackwardRequest(model_id=run, seq_id=1, loss_fn="cross_entropy").SerializeToString()
            headers = {"Content-Type": PROTOBUF}
            response = await world.alice.send("POST", "forward_backward", content=body, headers=headers)
            assert (response.status_code, response.json()["field"]) == (400, "data")
            await goes_on(world, run, 2, bystander)

    play(scene)


OPERATIONS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "negative rate": ("optim_step", {"adam_params": {"learning_rate": -1}}, 422, "adam_params.learning_rate"),
    "beta of one": ("optim_step", {"adam_params": {"beta1": 1.0}}, 422, "adam_params.beta1"),
    "another optimizer": ("optim_step", {"optimizer_params": {"type": "dimuon"}}, 400, "optimizer_params.type"),
    "another optimizer's settings": ("optim_step", {"adam_params": {"type": "dimuon"}}, 400, "adam_params.type"),
    "name missing": ("save_weights", {}, 422, "path"),
    "name with a slash": ("save_weights", {"path": "a/b"}, 422, "path"),
    "name that climbs": ("save_weights", {"path": ".."}, 422, "path"),
    "name that is taken": ("save_weights", {"path": "taken"}, 400, "path"),
    "ttl of nothing": ("save_weights", {"path": "a", "ttl_seconds": 0}, 422, "ttl_seconds"),
    "ttl beyond time": ("save_weights", {"path": "a", "ttl_seconds": 10**400}, 422, "ttl_seconds"),
    "neither name nor session": ("save_weights_for_sampler", {}, 400, "path"),
    "both name and session": ("save_weights_for_sampler", {"path": "a", "sampling_session_seq_id": 0}, 400, "path"),
    "session number beyond all": (
        "save_weights_for_sampler",
        {"sampling_session_seq_id": 1 << 63},
        422,
        "sampling_session_seq_id",
    ),
    "no path": ("load_weights", {"path": "a"}, 400, "path"),
    "unknown path": ("load_weights", {"path": "tinker://x:train:0/weights/a"}, 404, "path"),
    "no kind of weights": ("load_weights", {"path": "tinker://x:train:0/other/a"}, 400, "path"),
    "path missing": ("load_weights", {}, 422, "path"),
}


def test_a_refused_operation_has_used_its_number(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            bystander = await world.bob.run()
            await world.bob.step(bystander, 1)
            await world.bob.step(bystander, 2)
            for number, (case, (path, fields, status, field)) in enumerate(OPERATIONS.items()):
                run = await world.alice.run()
                await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "taken"})
                response = await world.alice.post(path, {"model_id": run, "seq_id": 2, **fields})
                answer = response.json()
                assert (response.status_code, answer["field"]) == (status, field), (case, answer)
                assert answer["detail"].startswith(field)
                assert "metrics" in await world.alice.step(run, 3)
                assert "metrics" in await world.bob.step(bystander, number + 3)

    play(scene)


def test_a_body_that_is_no_json_is_told(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for content in (b"", b"{", b"[]", b"\xff"):
                response = await world.alice.send("POST", "optim_step", content=content)
                assert (response.status_code, response.json()["field"]) == (422, "body"), content
            for content in (b"\xff\xff", b"{}"):
                headers = {"Content-Type": PROTOBUF}
                response = await world.alice.send("POST", "forward_backward", content=content, headers=headers)
                assert response.status_code in (400, 404), response.text
            response = await world.alice.send("POST", "forward_backward", content=b"\x08", headers={})
            assert (response.status_code, response.json()["field"]) == (400, "Content-Type")
            headers = {"Content-Type": "application/json; charset=utf-8"}
            response = await world.alice.send("POST", "forward_backward", content=b"\x08", headers=headers)
            assert (response.status_code, response.json()["field"]) == (400, "body")
            await world.alice.step(run, 1)

    play(scene)


MODELS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown model": ({"base_model": "other"}, 400, "base_model"),
    "rank of nothing": ({"lora_config": {"rank": 0}}, 422, "lora_config.rank"),
    "rank beyond the limit": ({"lora_config": {"rank": 33}}, 400, "lora_config.rank"),
    "rank beyond all": ({"lora_config": {"rank": 10**30}}, 400, "lora_config.rank"),
    "nothing to train": (
        {"lora_config": {"rank": 4, "train_mlp": False, "train_attn": False, "train_unembed": False}},
        400,
        "lora_config",
    ),
    "another optimizer": ({"optimizer_config": {"type": "dimuon", "version": 1}}, 400, "optimizer_config.type"),
    "no number": ({"model_seq_id": "x"}, 422, "model_seq_id"),
    "number below zero": ({"model_seq_id": -1}, 422, "model_seq_id"),
    "unknown session": ({"session_id": "session-x"}, 404, "session_id"),
}


def test_a_run_that_cannot_be_made(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            for number, (case, (fields, status, field)) in enumerate(MODELS.items()):
                session = await world.alice.session()
                body = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 4}}
                response = await world.alice.post("create_model", {**body, **fields})
                assert (response.status_code, response.json()["field"]) == (status, field), (case, response.text)
                if case == "unknown model":
                    assert MODEL in response.json()["detail"]
                assert world.worker.times(CreateRun) == number
                await world.alice.run(session)

    play(scene)


TWO = {"prompt": {"chunks": [{"tokens": [1, 2]}]}}
LAST = {**TWO, "prompt_logprobs": True}


def targets(*rows: list[int]) -> dict[str, Any]:
    return {"data": [number for row in rows for number in row], "dtype": "int64", "shape": [len(rows), len(rows[0])]}


SAMPLES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no prompt": ({"prompt": {"chunks": []}}, 400, "prompt"),
    "empty chunk": ({"prompt": {"chunks": [{"tokens": []}]}}, 400, "prompt.chunks[0]"),
    "an image": (
        {"prompt": {"chunks": [{"tokens": [1]}, {"type": "image", "data": "", "format": "png"}]}},
        400,
        "prompt.chunks[1]",
    ),
    "id beyond the vocabulary": ({"prompt": {"chunks": [{"tokens": [100]}]}}, 400, "prompt"),
    "id that is none": ({"prompt": {"chunks": [{"tokens": [1.5]}]}}, 422, "prompt.chunks.0.tokens.0"),
    "prompt too long": ({"prompt": {"chunks": [{"tokens": list(LONG)}]}}, 400, "prompt"),
    "sample too long": ({"sampling_params": {"max_tokens": 64}}, 400, "sampling_params.max_tokens"),
    "no token": ({"sampling_params": {"max_tokens": 0}}, 422, "sampling_params.max_tokens"),
    "colder than cold": ({"sampling_params": {"temperature": -1}}, 422, "sampling_params.temperature"),
    "top_p beyond one": ({"sampling_params": {"top_p": 1.5}}, 422, "sampling_params.top_p"),
    "stop with nothing": ({"sampling_params": {"stop": [""]}}, 400, "sampling_params.stop"),
    "stop beyond the vocabulary": ({"sampling_params": {"stop": [100]}}, 400, "sampling_params.stop"),
    "no samples": ({"num_samples": 0}, 422, "num_samples"),
    "unknown sampler": ({"sampling_session_id": "x"}, 404, "sampling_session_id"),
    "too many samples": ({"num_samples": 1025}, 422, "num_samples"),
    "two models": ({"base_model": MODEL}, 400, "sampling_session_id"),
    "a session and a path": ({"model_path": "tinker://x:train:0/weights/a"}, 400, "sampling_session_id"),
    "neither session nor model": ({"sampling_session_id": None}, 400, "base_model"),
    "another model": ({"sampling_session_id": None, "base_model": "other"}, 400, "base_model"),
    "more than all tokens": ({"topk_sample_logprobs": 101}, 400, "topk_sample_logprobs"),
    "more than all prompt tokens": ({**TWO, "topk_prompt_logprobs": 101}, 400, "topk_prompt_logprobs"),
    "a few below none": ({"topk_prompt_logprobs": -1}, 422, "topk_prompt_logprobs"),
    "too many draws": ({"prompt_alt_tokens_k": 1025}, 422, "prompt_alt_tokens_k"),
    "the last none": ({**LAST, "prompt_logprobs_last_n": 0}, 422, "prompt_logprobs_last_n"),
    "more than the last": (
        {**LAST, "prompt_logprobs_last_n": 2},
        400,
        "prompt_logprobs_last_n",
    ),
    "the last of nothing": ({**TWO, "prompt_logprobs_last_n": 1}, 400, "prompt_logprobs_last_n"),
    "the last of the likeliest": (
        {**TWO, "topk_prompt_logprobs": 1, "prompt_logprobs_last_n": 1},
        400,
        "prompt_logprobs_last_n",
    ),
    "targets of another length": ({**TWO, "target_prompt_logprobs": targets([1], [2])}, 400, "target_prompt_logprobs"),
    "target beyond the vocabulary": ({**TWO, "target_prompt_logprobs": targets([100])}, 400, "target_prompt_logprobs"),
    "target below none": ({**TWO, "target_prompt_logprobs": targets([3, -2])}, 400, "target_prompt_logprobs"),
    "targets of one token": ({"target_prompt_logprobs": targets([1])}, 400, "target_prompt_logprobs"),
    "targets that are none": ({**TWO, "target_prompt_logprobs": [[1]]}, 400, "target_prompt_logprobs"),
}


def test_a_sample_that_cannot_be_drawn(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sampler = await world.alice.sampler()
            for number, (case, (fields, status, field)) in enumerate(SAMPLES.items()):
                body: dict[str, Any] = {"sampling_session_id": sampler, "seq_id": number}
                body |= {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 3}}
                response = await world.alice.post("asample", {**body, **fields})
                assert response.status_code == status, (case, response.text)
                assert response.json()["field"].startswith(field), (case, response.text)
                assert world.worker.times(Sample) == number
                assert response.json()["detail"].startswith(response.json()["field"])
                # the number is still free: the SDK sends what it has mended under a new one, or under this
                assert len((await world.alice.result("asample", body))["sequences"]) == 1

    play(scene)


def test_a_sampler_of_nothing(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            body = {"session_id": session, "sampling_session_seq_id": 0}
            for source, status, field in (
                ({}, 400, "base_model"),
                ({"base_model": "other"}, 400, "base_model"),
                ({"model_path": "tinker://x"}, 400, "model_path"),
                ({"model_path": f"tinker://{run}/weights/a"}, 404, "model_path"),
                ({"base_model": MODEL, "sampling_session_seq_id": 1 << 63}, 422, "sampling_session_seq_id"),
            ):
                response = await world.alice.post("create_sampling_session", {**body, **source})
                assert (response.status_code, response.json()["field"]) == (status, field), response.text
            await world.alice.sampler(session)

    play(scene)


def test_an_error_of_ours_is_one_line_for_the_client(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()

            def broken(*_: object) -> None:
                raise RuntimeError("secret")

            with monkeypatch.context() as patch:
                patch.setattr("mint.server.access.run", broken)
                response = await world.alice.post("optim_step", {"model_id": run, "seq_id": 1})
            assert response.status_code == 500
            assert "secret" not in response.text
            # the SDK sends it again under the same number
            await world.alice.step(run, 1)

    play(scene)
