"""Images of requests: where they are decoded, and how much of them a server holds."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from mint.engine.core import VisionInfo
from mint.errors import BadRequestError, RateLimitError
from mint.openpi.images import encode_image
from mint.server import images
from mint.server.images import ImageReader, PixelMemory, may_have_images
from mint.server.operations.training import Pass
from mint.store.schema import operations
from mint.wire.chunks import ImageChunk

from . import inprocess
from .inprocess import Serve, play
from .test_train_step import content, request

VISION = VisionInfo(size=8, tokens_per_image=2)
EACH = 3 * 8 * 8


def dot(value: int) -> bytes:
    """A file of one pixel, which is 192 bytes once it has the model's size."""
    return encode_image(np.full((1, 1, 3), value, np.uint8))


def chunk(value: int) -> ImageChunk:
    return ImageChunk(dot(value), "png", None)


def read(reader: ImageReader, values: range) -> list[Any]:
    return [reader.read(chunk(value), f"chunks[{value}]") for value in values]


def test_many_tiny_files_are_refused_before_they_have_the_models_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_REQUEST_BYTES", 5 * EACH)
    memory = PixelMemory()
    reader = ImageReader(VISION, memory, "alice")
    kept = read(reader, range(5))
    read(reader, range(5))  # again, and nothing more
    with pytest.raises(BadRequestError, match=r"is image 6 .* a request may have 5") as refusal:
        read(reader, range(5, 6))
    assert refusal.value.field == "chunks[5]"
    assert memory._held == {"alice": 5 * EACH}
    assert len({image.key for image in kept}) == 5


def test_memory_is_counted_by_owner_until_nothing_refers_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_HELD_BYTES", 3 * EACH)
    memory = PixelMemory()
    kept = read(ImageReader(VISION, memory, "alice"), range(2))
    memory.check("alice")
    kept += read(ImageReader(VISION, memory, "alice"), range(2))
    with pytest.raises(RateLimitError, match="alice"):
        memory.check("alice")
    memory.check("bob")
    kept.clear()
    gc.collect()
    memory.check("alice")
    assert not memory._held


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_no_image_is_overlooked(image_format: str) -> None:
    """Whatever its body looks like; a body of text is none."""
    from mint.wire import messages_pb2 as pb

    message = pb.ForwardBackwardRequest()
    message.data.add().model_input.add().image.format = image_format
    assert may_have_images(message.SerializeToString())
    said = json.dumps({"format": image_format})
    assert may_have_images(said.encode())
    escaped = said.replace(image_format, "".join(f"\\u{ord(letter):04x}" for letter in image_format))
    assert json.loads(escaped) == {"format": image_format}
    assert may_have_images(escaped.encode())
    assert not may_have_images(json.dumps({"data": [{"tokens": list(range(1000))}]}).encode())


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A served model that sees; where passes are planned, by the name of the thread."""
    monkeypatch.setattr(inprocess, "INFO", replace(inprocess.INFO, vision=VISION))
    planned: list[str] = []
    original = Pass.plan

    def plan(self: Pass, *args: Any) -> Any:
        planned.append(threading.current_thread().name.partition("_")[0])
        return original(self, *args)

    monkeypatch.setattr(Pass, "plan", plan)
    return planned


def step(run: str, seq_id: int, *values: int) -> dict[str, Any]:
    """One datum of these images and one token."""
    pictures = [{"type": "image", "format": "png", "data": base64.b64encode(dot(value)).decode()} for value in values]
    targets = {"target_tokens": {"data": [6] * (2 * len(values) + 1), "dtype": "int64"}}
    datum = {"model_input": {"chunks": [*pictures, {"tokens": [5]}]}, "loss_fn_inputs": targets}
    return request(run, seq_id, forward_backward_input=content(datum))


def test_text_does_not_wait_for_images(serve: Serve, seeing: list[str]) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.result("train_step", request(run, 1, padding="x" * 5000))
            await world.alice.result("train_step", step(run, 2, 1, 2))
            assert seeing == ["database", "decoding"]

    play(scene)


def test_who_holds_much_is_told_to_come_again(serve: Serve, seeing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what a run needs to go on. What is finished holds nothing; others are not concerned."""
    monkeypatch.setattr(images, "MAX_HELD_BYTES", 2 * EACH)

    async def scene() -> None:
        async with serve() as world:
            run, other = await world.alice.run(), await world.bob.run()
            later = await world.alice.ok("train_step", step(run, 2, 1, 2))
            response = await world.alice.post("train_step", step(run, 3, 3))
            assert (response.status_code, response.headers["retry-after"]) == (429, "1"), response.text
            await world.bob.result("train_step", step(other, 1, 3))
            await world.alice.result("train_step", step(run, 1, 3))
            await world.alice.retrieve(later["request_id"])
            world.worker.executed.clear()
            for _ in range(50):
                gc.collect()
                response = await world.alice.post("train_step", step(run, 3, 3))
                if response.status_code == 200:
                    break
                await asyncio.sleep(0.02)
            assert response.status_code == 200, response.text

    play(scene)


def test_bodies_are_kept_only_for_what_may_be_replayed(serve: Serve) -> None:
    """An observation has half a megabyte, and a robot sends one every second."""

    async def scene() -> None:
        async with serve() as world:
            run, sampler = await world.alice.run(), await world.alice.sampler()
            await world.alice.result("train_step", request(run, 1))
            params = {"max_tokens": 2}
            body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": params, "sampling_session_id": sampler}
            answer = await world.alice.ok("asample", body)
            assert (await world.alice.post("retrieve_future", answer)).status_code == 200
            query = select(operations.c.kind, func.length(operations.c.payload) > 0)
            kept = await world.services.database.transaction(lambda c: dict(map(tuple, c.execute(query))))
            assert kept == {"create_model": True, "train_step": True, "sample": False}

    play(scene)


def test_a_batch_of_acts_has_its_place_in_line() -> None:
    from mint.server.operations.kinds import KINDS

    assert {name for name, kind in KINDS.items() if kind.lines_up} == {"sample", "act", "act_batch"}
