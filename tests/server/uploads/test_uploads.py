"""Uploads over HTTP: what becomes a checkpoint, what is refused, and that nothing is left of that."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from mint.engine.core import RestoreRun
from mint.engine.formats import factor_name
from tests.server.inprocess import Api, Serve, World, play
from tests.server.test_checkpoints import folders, listed

from .made import (
    CONFIG_NAME,
    NUM_PARAMETERS,
    OPTIMIZER_NAME,
    WEIGHTS_NAME,
    adapter,
    config,
    factors,
    optimizer,
    tar,
    weights,
)


async def sent(api: Api, archive: bytes, headers: Any = None, **fields: Any) -> httpx.Response:
    return await api.send(
        "POST", "checkpoints/upload", files={"file": ("a.tar", archive)}, data=fields, headers=headers or {}
    )


async def uploaded(api: Api, files: dict[str, bytes], **fields: Any) -> dict[str, Any]:
    answer = await sent(api, tar(files), **fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def stored(world: World) -> Path:
    """The one checkpoint folder."""
    (name,) = folders(world)
    return world.services.catalog.checkpoint_dir / name


def left(world: World) -> list[Path]:
    """What uploads have left on the disk beside the checkpoints that they became."""
    staged = list(world.services.catalog.checkpoint_dir.glob("*.staged"))
    return staged + list(world.services.config.upload_dir.iterdir())


def test_an_adapter_becomes_a_revision(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            world.services.catalog.checkpoint_dir.mkdir(exist_ok=True)
            answer = await uploaded(world.alice, adapter(), name="mine", ttl_seconds=3600, project_id="p")
            path = answer["path"]
            assert path.endswith("/sampler_weights/mine")
            assert answer["checkpoint_id"] == "sampler_weights/mine"
            (row,) = await listed(world.alice)
            assert (row["tinker_path"], row["size_bytes"]) == (path, answer["size_bytes"])
            assert row["expires_at"] is not None
            info = await world.alice.ok("weights_info", {"tinker_path": path})
            assert (info["base_model"], info["lora_rank"], info["train_unembed"]) == ("base", 2, True)
            usage = (await world.alice.send("GET", "billing/usage/checkpoints/current?project_id=p")).json()["data"]
            assert usage[0]["size_bytes"] == answer["size_bytes"]
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "path": path}
            assert "model_id" in await world.alice.result("load_weights", body)
            assert world.worker.times(RestoreRun) == 1
            assert (
                await world.alice.post("load_weights", {**body, "model_seq_id": 1, "optimizer": True})
            ).status_code == 400
            assert (await world.bob.post("weights_info", {"tinker_path": path})).status_code == 403
            run = path.removeprefix("tinker://").partition("/")[0]
            assert (await world.alice.post("optim_step", {"model_id": run, "seq_id": 1})).status_code == 410
            assert left(world) == []

    play(scene)


def test_what_is_stored_is_ours_whatever_came(serve: Serve) -> None:
    came = factors("attn", dtype="<f2")
    half = factor_name("model.layers.0.q_proj", "B")
    as_bfloat16 = {half: np.array([[1.0, -2.5]] * 6, "<f4")}
    header = {
        name: {"dtype": "F16" if name != half else "BF16", "shape": list(value.shape)} for name, value in came.items()
    }
    body, end = b"", 0
    for name, entry in header.items():
        data = came[name].tobytes() if name != half else (as_bfloat16[half].view("<u4") >> 16).astype("<u2").tobytes()
        entry["data_offsets"] = [end, end + len(data)]
        body, end = body + data, end + len(data)
    text = json.dumps({"__metadata__": {"who": "a stranger"}, **header}).encode()
    files = adapter(
        **{
            CONFIG_NAME: config(use_rslora=True, auto_mapping={"parent_library": "os"}, target_modules=["x"]),
            WEIGHTS_NAME: struct.pack("<Q", len(text)) + text + body,
            "tokenizer.json": b"{}",
        }
    )

    async def scene() -> None:
        async with serve() as world:
            await uploaded(world.alice, {f"./run/{name}": content for name, content in files.items()})
            assert {file.name for file in stored(world).iterdir()} == {CONFIG_NAME, WEIGHTS_NAME, "manifest.json"}
            kept = load((stored(world) / WEIGHTS_NAME).read_bytes())
            assert set(kept) == factors("attn").keys()
            for name, value in kept.items():
                wanted = as_bfloat16[half] if name == half else came[name].astype("<f4")
                assert value.dtype == np.float32
                assert (value == wanted).all(), name
            settings = json.loads((stored(world) / CONFIG_NAME).read_text())
            assert settings["lora_alpha"] == pytest.approx(16 * 2**0.5)
            assert settings["target_modules"] == ["k_proj", "q_proj"]
            assert not settings.keys() & {"use_rslora", "auto_mapping"}

    play(scene)


def test_layers_that_are_left_alone_have_zeros(serve: Serve) -> None:
    only = {name: value for name, value in factors("attn").items() if "q_proj" in name}

    async def scene() -> None:
        async with serve() as world:
            await uploaded(world.alice, adapter(**{WEIGHTS_NAME: weights(only)}))
            kept = load((stored(world) / WEIGHTS_NAME).read_bytes())
            assert kept.keys() == factors("attn").keys()
            assert all((kept[name] == only[name]).all() if name in only else not kept[name].any() for name in kept)
            (row,) = (await world.alice.send("GET", "training_runs")).json()["training_runs"]
            info = await world.alice.ok("weights_info", {"tinker_path": row["last_sampler_checkpoint"]["tinker_path"]})
            assert [info[f"train_{kind}"] for kind in ("attn", "mlp", "unembed")] == [True, False, False]

    play(scene)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_training_checkpoint_keeps_its_optimizer(serve: Serve, steps: int) -> None:
    async def scene() -> None:
        async with serve() as world:
            state = optimizer(steps)
            answer = await uploaded(world.alice, adapter(**{OPTIMIZER_NAME: state, "manifest.json": b"{}"}))
            assert answer["checkpoint_id"] == "weights/uploaded"
            assert (stored(world) / OPTIMIZER_NAME).read_bytes() == state
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "path": answer["path"]}
            assert "model_id" in await world.alice.result("load_weights", {**body, "optimizer": True})

    play(scene)


def changed(change: Any) -> bytes:
    tensors = dict(factors())
    change(tensors)
    return weights(tensors)


ENTRY = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
TWICE = f"{{{ENTRY % (0, 4)}, {ENTRY % (4, 8)}}}".encode()
NAME = factor_name("lm_head", "A")
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "no weights": ({WEIGHTS_NAME: b""}, WEIGHTS_NAME),
    "no safetensors": ({WEIGHTS_NAME: b"\x80\x05" + bytes(100)}, WEIGHTS_NAME),
    "a header of petabytes": ({WEIGHTS_NAME: struct.pack("<Q", 1 << 50) + b"{}"}, WEIGHTS_NAME),
    "a header that is nested deep": ({WEIGHTS_NAME: struct.pack("<Q", 200_000) + b'{"a":' * 40_000}, WEIGHTS_NAME),
    "a name twice": ({WEIGHTS_NAME: struct.pack("<Q", len(TWICE)) + TWICE + bytes(8)}, WEIGHTS_NAME),
    "cut off": ({WEIGHTS_NAME: weights()[:-1]}, WEIGHTS_NAME),
    "another shape": ({WEIGHTS_NAME: changed(lambda t: t.update({NAME: np.zeros((2, 5), "<f4")}))}, WEIGHTS_NAME),
    "another rank": ({WEIGHTS_NAME: weights(factors(rank=3))}, WEIGHTS_NAME),
    "whole numbers": ({WEIGHTS_NAME: changed(lambda t: t.update({NAME: np.zeros((2, 4), "<i8")}))}, WEIGHTS_NAME),
    "half a pair": ({WEIGHTS_NAME: changed(lambda t: t.pop(NAME))}, WEIGHTS_NAME),
    "an unknown layer": ({WEIGHTS_NAME: changed(lambda t: t.update({"x.lora_A.weight": t[NAME]}))}, WEIGHTS_NAME),
    "no tensors": ({WEIGHTS_NAME: weights({})}, WEIGHTS_NAME),
    "not a number": ({WEIGHTS_NAME: changed(lambda t: t[NAME].fill(np.nan))}, WEIGHTS_NAME),
    "infinite": ({WEIGHTS_NAME: changed(lambda t: t[NAME].put(3, -np.inf))}, WEIGHTS_NAME),
    "no JSON": ({CONFIG_NAME: b"{"}, CONFIG_NAME),
    "no object": ({CONFIG_NAME: b"[]"}, CONFIG_NAME),
    "nested deep": ({CONFIG_NAME: b"[" * 100_000}, CONFIG_NAME),
    "no LoRA": ({CONFIG_NAME: config(peft_type="IA3")}, f"{CONFIG_NAME}.peft_type"),
    "rank 0": ({CONFIG_NAME: config(r=0)}, f"{CONFIG_NAME}.r"),
    "rank true": ({CONFIG_NAME: config(r=True)}, f"{CONFIG_NAME}.r"),
    "rank over the limit": ({CONFIG_NAME: config(r=33)}, f"{CONFIG_NAME}.r"),
    "a huge rank": ({CONFIG_NAME: config(r=10**400, use_rslora=True)}, f"{CONFIG_NAME}.r"),
    "no scale": ({CONFIG_NAME: config(lora_alpha=float("nan"))}, f"{CONFIG_NAME}.lora_alpha"),
    "a huge scale": ({CONFIG_NAME: config(lora_alpha=10**400)}, f"{CONFIG_NAME}.lora_alpha"),
    "DoRA": ({CONFIG_NAME: config(use_dora=True)}, f"{CONFIG_NAME}.use_dora"),
    "ranks by layer": ({CONFIG_NAME: config(rank_pattern={"q_proj": 3})}, f"{CONFIG_NAME}.rank_pattern"),
    "PiSSA": ({CONFIG_NAME: config(init_lora_weights="pissa")}, f"{CONFIG_NAME}.init_lora_weights"),
    "biases": ({CONFIG_NAME: config(bias="all")}, f"{CONFIG_NAME}.bias"),
    "another model": ({CONFIG_NAME: config(base_model_name_or_path="gpt-5")}, "base_model"),
    "no model": ({CONFIG_NAME: config(base_model_name_or_path=None)}, "base_model"),
    "moments of another size": ({OPTIMIZER_NAME: optimizer(size=7)}, OPTIMIZER_NAME),
    "moments after no step": ({OPTIMIZER_NAME: optimizer(step=np.array(0, "<i8"))}, OPTIMIZER_NAME),
    "no moments": ({OPTIMIZER_NAME: optimizer(0, step=np.array(1, "<i8"))}, OPTIMIZER_NAME),
    "steps below 0": ({OPTIMIZER_NAME: optimizer(step=np.array(-1, "<i8"))}, OPTIMIZER_NAME),
    "steps of a kind": ({OPTIMIZER_NAME: optimizer(step=np.array([3], "<i8"))}, OPTIMIZER_NAME),
    "another layout": ({OPTIMIZER_NAME: optimizer(layout=np.array(1, "<i8"))}, OPTIMIZER_NAME),
    "more than moments": ({OPTIMIZER_NAME: optimizer(more=np.zeros(1))}, OPTIMIZER_NAME),
    "negative squares": ({OPTIMIZER_NAME: optimizer(exp_avg_sq=np.full(NUM_PARAMETERS, -1.0, "<f4"))}, OPTIMIZER_NAME),
    "no state": ({OPTIMIZER_NAME: save({"a": np.zeros(1)})}, OPTIMIZER_NAME),
}


def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            for name, (files, field) in REFUSED.items():
                answer = await sent(world.alice, tar(adapter(**files)))
                assert answer.status_code == 400, (name, answer.text)
                assert answer.json()["field"] == field, (name, answer.text)
            for missing in (CONFIG_NAME, WEIGHTS_NAME):
                files = adapter()
                del files[missing]
                answer = await sent(world.alice, tar(files))
                assert (answer.status_code, answer.json()["field"]) == (400, "file")
            assert await listed(world.alice) == []
            assert (await world.alice.send("GET", "sessions")).json()["sessions"] == []
            assert left(world) == []
            assert folders(world) == set()
            await uploaded(
                world.alice, adapter(**{CONFIG_NAME: config(base_model_name_or_path="x")}), base_model="base"
            )

    play(scene)


def test_forms_that_are_refused(serve: Serve) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    archive = tar(adapter())
    bodies = [
        (b"", "body"),
        (b"--b--", "file"),
        (part % (b"name", b"x") + b"--b--", "file"),
        (part % (b"file", archive), "body"),
        (part % (b"file", archive) + part % (b"file", archive) + b"--b--", "file"),
        (part % (b"name", b"x" * 5000) + b"--b--", "name"),
        (part % (b"name", b"\xff") + part % (b"file", archive) + b"--b--", "body"),
        (part % (b"name", b"../x") + part % (b"file", archive) + b"--b--", "name"),
        (part % (b"ttl_seconds", b"1") + part % (b"file", archive) + b"--b--", "ttl_seconds"),
        (b"".join(part % (b"n%d" % number, b"") for number in range(20)) + b"--b--", "body"),
    ]

    async def scene() -> None:
        async with serve() as world:
            for body, field in bodies:
                headers = {"Content-Type": "multipart/form-data; boundary=b"}
                answer = await world.alice.send("POST", "checkpoints/upload", content=body, headers=headers)
                assert answer.status_code in (400, 422), (body[:80], answer.text)
                assert answer.json()["field"] == field, (body[:80], answer.text)
            for kind in ("application/gzip", "multipart/form-data", ""):
                answer = await world.alice.send("POST", "checkpoints/upload", headers={"Content-Type": kind})
                assert (answer.status_code, answer.json()["field"]) == (400, "Content-Type")
            assert left(world) == []

    play(scene)
