"""forward_backward_reverse_kl: what arrives at the engine, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mint.config import ModelSource
from mint.engine.core import ForwardBackward, OptimStep, ReverseKL

from .inprocess import MODEL, Api, Serve, World, play
from .test_restarts import killed, kinds

PATH = "mint/forward_backward_reverse_kl"
NAN = float("nan")
LONG = [5] * 65
MODELS = (ModelSource(MODEL, "/nowhere"), ModelSource("other", "/nowhere"))


def chunks(*tokens: int) -> dict[str, Any]:
    return {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]}


def datum(**fields: Any) -> dict[str, Any]:
    good = {"student_input": chunks(5, 6, 7), "reference_input": chunks(9, 6, 7), "target_tokens": [7, 8]}
    return {**good, "weights": [0.5, 1], **fields}


def request(run: str, seq_id: int, **fields: Any) -> dict[str, Any]:
    return {"model_id": run, "seq_id": seq_id, "data": [datum()], **fields}


def number(value: float) -> dict[str, Any]:
    """One number as TensorData."""
    return {"data": [value], "dtype": "float32", "shape": [1]}


async def saved(api: Api, run: str, seq_id: int, kind: str = "save_weights", name: str = "a") -> str:
    path: str = (await api.result(kind, {"model_id": run, "seq_id": seq_id, "path": name}))["path"]
    return path


def commands(world: World) -> list[ReverseKL]:
    return [command for command in world.worker.executed if isinstance(command, ReverseKL)]


# ---------------------------------------------------------------- what arrives at the engine


def test_a_request_and_its_answer(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            tensor = {"data": [7, 8], "dtype": "int64", "shape": [2]}
            second = datum(target_tokens=tensor, weights={"data": [2, 3], "dtype": "int64"})
            body = request(run, 1, data=[datum(), second, datum(weights=None)], temperature=2)
            answer = await world.alice.result(PATH, body)
            assert answer == {
                "outputs": [{"loss": number(loss)} for loss in (1.5, 5.0, 2.0)],
                "metrics": {"loss:sum": 8.5},
                "type": "mint_forward_backward_reverse_kl",
            }
            (command,) = commands(world)
            assert (command.run_id, command.reference, command.temperature) == (run, None, 2.0)
            first, second_datum, third = command.data
            assert first.student.tolist() == [5, 6, 7]
            assert first.reference.tolist() == [9, 6, 7]
            for each, weights in ((first, [0.5, 1]), (second_datum, [2, 3]), (third, [1, 1])):
                assert (each.targets.dtype, each.weights.dtype) == (np.int64, np.float32)
                assert each.targets.tolist() == [7, 8]
                assert each.weights.tolist() == weights

    play(scene)


def test_whom_a_run_is_drawn_to(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, teacher = await world.alice.run(), await world.alice.run()
            training = await saved(world.alice, teacher, 1)
            sampler = await saved(world.alice, teacher, 2, "save_weights_for_sampler")
            own = await saved(world.alice, run, 1)
            paths = [None, MODEL, training, sampler, own, sampler.replace("tinker://", "mint://")]
            for number, path in enumerate(paths, 2):
                await world.alice.result(PATH, request(run, number, reference_model_path=path))
            revisions = [command.reference for command in commands(world)]
            assert revisions[:2] == [None, None]
            folders = [revision.directory for revision in revisions[2:] if revision is not None]
            assert len(folders) == 4
            assert len(set(folders)) == 3
            assert folders[1] == folders[3]
            assert [folder.name for folder in folders] == [each.key for each in revisions[2:] if each is not None]
            assert all(folder.is_dir() for folder in folders)

    play(scene)


def test_it_keeps_its_place_and_one_number_is_one_operation(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            later = [
                await world.alice.ok("optim_step", {"model_id": run, "seq_id": 3}),
                *[await world.alice.ok(PATH, request(run, 2)) for _ in range(3)],
            ]
            assert world.worker.times(ReverseKL, OptimStep) == 0
            await world.alice.pass_(run, 1)
            for future in later:
                await world.alice.retrieve(future["request_id"])
            assert kinds(world, run) == ["CreateRun", "ForwardBackward", "ReverseKL", "OptimStep"]

    play(scene)


def test_it_is_done_again_after_a_restart_with_the_reference_it_had(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = await saved(world.alice, run, 1)
            await world.alice.result(PATH, request(run, 2, reference_model_path=path))
            # the name is now of other weights
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 3, "path": "a", "overwrite": True})
            world.worker.paused = True
            pending = await world.alice.ok(PATH, request(run, 4, reference_model_path=path))
            folder = killed(tmp_path / "data")
            world.worker.resume()
            await world.alice.retrieve(pending["request_id"])
            keys = [command.reference.key for command in commands(world) if command.reference is not None]
        async with serve(folder) as world:
            assert (await world.alice.retrieve(pending["request_id"]))["outputs"] == [{"loss": number(1.5)}]
            assert kinds(world, run) == ["CreateRun", "ReverseKL", "ReverseKL"]
            again = [command.reference.key for command in commands(world) if command.reference is not None]
            assert again == keys
            assert len(set(keys)) == 2

    play(scene)


# ---------------------------------------------------------------- refusals

IMAGE = {"type": "image", "data": "aaaa", "format": "png"}
DATA: dict[str, tuple[dict[str, Any], str]] = {
    "student missing": ({"student_input": None}, "student_input"),
    "student without tokens": ({"student_input": {"chunks": []}}, "student_input"),
    "student with an empty chunk": ({"student_input": chunks()}, "student_input.chunks[0]"),
    "student with an image": ({"student_input": {"chunks": [IMAGE]}}, "student_input.chunks[0]"),
    "student beyond the vocabulary": ({"student_input": chunks(5, 6, 100)}, "student_input"),
    "student over-long": ({"student_input": chunks(*LONG)}, "student_input"),
    "reference missing": ({"reference_input": None}, "reference_input"),
    "reference no object": ({"reference_input": [1, 2]}, "reference_input"),
    "reference with a negative id": ({"reference_input": chunks(5, -1, 7)}, "reference_input"),
    "reference over-long": ({"reference_input": chunks(*LONG)}, "reference_input"),
    "reference id that is none": ({"reference_input": chunks(5, 1.5, 7)}, "reference_input.chunks[0]"),  # type: ignore[arg-type]
    "targets missing": ({"target_tokens": None}, "target_tokens"),
    "targets empty": ({"target_tokens": [], "weights": []}, "target_tokens"),
    "targets more than the student": ({"student_input": chunks(5)}, "target_tokens"),
    "targets more than the reference": ({"reference_input": chunks(5)}, "target_tokens"),
    "targets no integers": ({"target_tokens": [7.5, 8]}, "target_tokens"),
    "targets of another type": ({"target_tokens": {"data": [7, 8], "dtype": "float32"}}, "target_tokens"),
    "targets in two dimensions": ({"target_tokens": [[7], [8]], "weights": None}, "target_tokens"),
    "targets ragged": ({"target_tokens": [[7], [8, 9]]}, "target_tokens"),
    "targets beyond the vocabulary": ({"target_tokens": [7, 100]}, "target_tokens"),
    "targets no tensor": ({"target_tokens": "78"}, "target_tokens"),
    "targets sparse": (
        {"target_tokens": {"data": [7], "dtype": "int64", "shape": [2, 9], "sparse_crow_indices": [0, 1, 1]}},
        "target_tokens",
    ),
    "weights too few": ({"weights": [1.0]}, "weights"),
    "weights too many": ({"weights": [1.0] * 3}, "weights"),
    "weight not a number": ({"weights": [1.0, NAN]}, "weights"),
    "weight beyond all": ({"weights": [1.0, 1e39]}, "weights"),
    "weight that is none": ({"weights": [1.0, None]}, "weights"),
    "weights in two dimensions": ({"weights": [[1.0], [1.0]]}, "weights"),
}


async def refused(world: World, run: str, seq_id: int, status: int, **fields: Any) -> dict[str, Any]:
    """A request that is refused, and what it says; the run's next number is carried out at once."""
    content = json.dumps(request(run, seq_id, **fields))
    response = await world.alice.send("POST", PATH, content=content, headers={"Content-Type": "application/json"})
    answer: dict[str, Any] = response.json()
    assert response.status_code == status, answer
    assert answer["detail"].startswith(answer["field"])
    assert "metrics" in await world.alice.step(run, seq_id + 1)
    assert commands(world) == []
    return answer


@pytest.mark.parametrize("case", DATA)
def test_a_bad_datum_is_named(serve: Serve, case: str) -> None:
    fields, field = DATA[case]

    async def scene() -> None:
        async with serve() as world:
            answer = await refused(world, await world.alice.run(), 1, 400, data=[datum(), datum(**fields)])
            assert (answer["field"], answer["datum"]) == (f"data[1].{field}", 1)

    play(scene)


WHOLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "no data": ({"data": None}, "data", "list"),
    "empty data": ({"data": []}, "data", "at least one"),
    "datum no object": ({"data": [5]}, "data[0]", "object"),
    **{
        f"temperature {value}": ({"temperature": value}, "temperature", "from 0.001 to 1000")
        for value in (0, -1, NAN, float("inf"), 1e-9, 1e9)
    },
    "temperature no number": ({"temperature": "1"}, "temperature", "number"),
    "temperature true": ({"temperature": True}, "temperature", "number"),
    "path no text": ({"reference_model_path": 5}, "reference_model_path", "text"),
    "path of nothing": ({"reference_model_path": ""}, "reference_model_path", MODEL),
    "no path and not the base model": ({"reference_model_path": "other"}, "reference_model_path", MODEL),
    "a path that is none": ({"reference_model_path": "tinker://x"}, "reference_model_path", "tinker://<run>"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_bad_request_is_named(serve: Serve, case: str) -> None:
    fields, field, word = WHOLE[case]

    async def scene() -> None:
        async with serve(models=MODELS) as world:
            answer = await refused(world, await world.alice.run(), 1, 400, **fields)
            assert answer["field"] == field
            assert word in answer["detail"]

    play(scene)


def test_a_reference_that_cannot_be_had(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(models=MODELS) as world:
            run, theirs = await world.alice.run(), await world.bob.run()
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "base_model": "other"}
            other = (await world.alice.result("create_model", {**body, "lora_config": {"rank": 4}}))["model_id"]
            for number, (path, status, words) in enumerate(
                (
                    (f"tinker://{run}/weights/missing", 404, "does not exist"),
                    (await saved(world.bob, theirs, 1), 403, "another API key"),
                    (await saved(world.alice, other, 1), 400, "'other'"),
                )
            ):
                answer = await refused(world, run, 1 + 2 * number, status, reference_model_path=path)
                assert answer["field"] == "reference_model_path"
                assert words in answer["detail"]

    play(scene)


def test_a_reference_whose_files_are_gone(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = await saved(world.alice, run, 1)
            shutil.rmtree(tmp_path / "data" / "checkpoints")
            answer = await refused(world, run, 2, 404, reference_model_path=path)
            assert "gone" in answer["detail"]

    play(scene)


def test_whose_run_it_is(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for run_id, status in ((run, 403), ("nobody:train:0", 404)):
                response = await world.bob.post(PATH, request(run_id, 1))
                assert (response.status_code, response.json()["field"]) == (status, "model_id")
            for seq_id in (0, -1, "1", 1 << 63):
                response = await world.alice.post(PATH, {**request(run, 1), "seq_id": seq_id})
                assert (response.status_code, response.json()["field"]) == (400, "seq_id")
            for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
                headers = {"Content-Type": "application/json"}
                response = await world.alice.send("POST", PATH, content=body, headers=headers)
                assert (response.status_code, response.json()["field"]) == (400, "body")
            await world.alice.step(run, 2)  # 1 was used up, as text
            assert world.worker.times(ReverseKL, ForwardBackward) == 0

    play(scene)
