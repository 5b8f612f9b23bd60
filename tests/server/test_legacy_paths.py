"""Paths of old, `mint://<run>/<name>`, wherever a checkpoint is named."""

from __future__ import annotations

from mint.engine.core import Interpolate, LoadState, RestoreRun, ReverseKL, Sample

from .inprocess import Serve, play

DATUM = {
    "student_input": {"chunks": [{"tokens": [5, 6]}]},
    "reference_input": {"chunks": [{"tokens": [5, 6]}]},
    "target_tokens": [6, 7],
}
PROMPT = {"prompt": {"chunks": [{"tokens": [5]}]}, "sampling_params": {"max_tokens": 1}}


def test_they_name_what_the_run_has_under_that_name(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, both, only = await world.alice.run(), "both", "only"
            for number, (kind, name) in enumerate(
                (("save_weights", both), ("save_weights_for_sampler", both), ("save_weights_for_sampler", only)), 1
            ):
                await world.alice.result(kind, {"model_id": run, "seq_id": number, "path": name})
            folders = [each.directory for each in world.worker.executed if hasattr(each, "directory")][-3:]
            training, sampling, other = (folder.name.removesuffix(".staged") for folder in folders)

            for name, expected in ((both, sampling), (only, other)):
                sampler = await world.alice.sampler(model_path=f"mint://{run}/{name}")
                found = (await world.alice.send("GET", f"samplers/{sampler}")).json()
                assert found["model_path"] == f"tinker://{run}/sampler_weights/{name}"
                await world.alice.result("asample", {"sampling_session_id": sampler, "seq_id": 0, **PROMPT})
                command = world.worker.executed[-1]
                assert isinstance(command, Sample)
                assert command.revision.key == expected

            await world.alice.result("load_weights", {"model_id": run, "seq_id": 4, "path": f"mint://{run}/{both}"})
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "path": f"mint://{run}/{only}"}
            await world.alice.result("load_weights", body)
            loaded = [each.directory.name for each in world.worker.executed if isinstance(each, LoadState | RestoreRun)]
            assert loaded == [training, other]

            fields = {"model_id": run, "seq_id": 5, "reference_model_path": f"mint://{run}/{both}", "data": [DATUM]}
            await world.alice.result("mint/forward_backward_reverse_kl", fields)
            (distilled,) = [each for each in world.worker.executed if isinstance(each, ReverseKL)]
            assert distilled.reference.key == training
            body = {"source_paths": [f"mint://{run}/{both}", f"mint://{run}/{only}"], "coefficients": [1, 1]}
            await world.alice.result("mint/checkpoints/interpolate", body)
            (summed,) = [each for each in world.worker.executed if isinstance(each, Interpolate)]
            assert [source.directory.name for source in summed.sources] == [sampling, other]
            for name, segment in ((both, "weights"), (only, "sampler_weights")):
                body = {"source_path": f"mint://{run}/{name}", "destination_project_id": "p"}
                assert f"/{segment}/{name}" in (await world.alice.ok("copy_weights", body))["tinker_path"]
                assert await world.alice.ok("weights_info", {"tinker_path": f"mint://{run}/{name}"})

    play(scene)


def test_what_is_not_there_is_not_found(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for path, status in ((f"mint://{run}/missing", 404), (f"mint://{run}/", 400), (f"tinker://{run}/a", 400)):
                answer = await world.alice.post("weights_info", {"tinker_path": path})
                assert (answer.status_code, answer.json()["field"]) == (status, "tinker_path")

    play(scene)
