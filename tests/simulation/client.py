"""Clients as the SDK is one, over a network that loses, repeats and delays: they live on when the server does not.

Each coroutine here ends with the server's process, and is begun again with the next one: what a client knows is in its
program's steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from fastapi import Response

from mint.errors import MintError
from mint.server.operations.kinds import KINDS
from mint.server.operations.submit import submit
from mint.server.operations.weights import sampler_id_of
from mint.server.routes.futures import cancel_future, retrieve_future
from mint.server.routes.samplers import create_sampling_session
from mint.server.routes.sessions import create_session, finish_session, heartbeat
from mint.server.services import Services
from mint.store.keys import Key
from mint.wire.passes import JSON, PROTOBUF
from mint.wire.requests import (
    CancelFutureRequest,
    CreateSamplingSessionRequest,
    CreateSessionRequest,
    FinishSessionRequest,
    HeartbeatRequest,
    RetrieveFutureRequest,
)
from tests.dispatch.fakes import MODEL
from tests.simulation.programs import Draw, Run, Session, Step, body_of, json_body
from tests.simulation.world import World

T = TypeVar("T")

BASE_SAMPLER = 99_000
"""Number of the sampler of the bare base model in its session."""
RETRIED = {408, 429, 500, 503}
BEAT_SECONDS = 20.0


class LostError(Exception):
    """No answer came, or one that says to ask again."""


class Client:
    """One session's, with one key."""

    def __init__(self, world: World, session: Session, key: Key) -> None:
        self._world = world
        self._session = session
        self._key = key

    # --- the network ----------------------------------------------------------------------------------------

    async def ask(self, what: str, action: Callable[[Services], Awaitable[T]]) -> T:
        """Send until there is an answer.

        Raises:
            MintError: a refusal that sending again does not change.
        """
        while True:
            try:
                return await self._once(what, action)
            except LostError:
                await asyncio.sleep(self._world.random.uniform(0.1, 1.0))

    async def _once(self, what: str, action: Callable[[Services], Awaitable[T]]) -> T:
        world = self._world
        await asyncio.sleep(world.random.random() * 0.05)
        if world.strikes("request lost"):
            raise LostError
        server = world.server
        if server is None or not server.started.is_set():
            raise LostError
        if world.strikes("request twice"):
            world.trace("twice:", what)
            self._repeat = asyncio.create_task(self._again(server, action))
        try:
            world.trace("arrives:", what)
            answer = await action(server)
        except MintError as error:
            world.trace("refused:", what, error)
            if error.status in RETRIED:
                raise LostError from None
            raise
        except Exception as error:
            world.trace("fails:", what, repr(error))
            raise LostError from None
        world.point("response")
        await asyncio.sleep(world.random.random() * 0.05)
        if world.strikes("response lost"):
            world.trace("response lost:", what)
            raise LostError
        return answer

    async def _again(self, server: Services, action: Callable[[Services], Awaitable[Any]]) -> None:
        await asyncio.sleep(self._world.random.random() * 0.2)
        try:
            await action(server)
        except Exception as error:  # nobody hears of it
            self._world.trace("the second one fails:", repr(error))

    # --- the session ----------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Do what is left of the program."""
        session = self._session
        if not session.session_id:
            http: Any = SimpleNamespace(headers={"x-idempotency-key": f"session-{session.key}"})
            request = CreateSessionRequest(type="create_session", tags=[], user_metadata={}, sdk_version="0")
            answer = await self.ask("create_session", lambda s: create_session(request, http, s, self._key.owner))
            session.session_id = answer["session_id"]
            for run in session.runs:
                run.session_id = session.session_id
        beating = asyncio.create_task(self._beat())
        await asyncio.gather(*(self._play_run(run) for run in session.runs), *(self._draw(d) for d in session.draws))
        beating.cancel()

    async def _beat(self) -> None:
        request = HeartbeatRequest(session_id=self._session.session_id)
        while not self._session.vanished:
            await self.ask("heartbeat", lambda s: heartbeat(request, s, self._key.owner))
            await asyncio.sleep(BEAT_SECONDS)

    async def finish(self) -> None:
        """The client ends as it should."""
        session_id, request = self._session.session_id, FinishSessionRequest()
        await self.ask("finish", lambda s: finish_session(session_id, request, s, self._key.owner))

    # --- operations -----------------------------------------------------------------------------------------

    async def _play_run(self, run: Run) -> None:
        under_way: set[asyncio.Task[None]] = set()
        for step in run.steps:
            if step.over:
                continue
            room = 0 if step.alone or not run.steps[0].over else run.window - 1
            while len(under_way) > room:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            if self._session.vanished:
                break
            under_way.add(asyncio.create_task(self._carry(run, step)))
        if under_way:
            await asyncio.wait(under_way)

    async def _carry(self, run: Run, step: Step) -> None:
        body, content_type = body_of(run, step)
        name = f"{run.index}/{step.number} {step.what}"
        if step.request_id is None:
            self._session.sent += 1
            try:
                kind = KINDS[step.kind]
                first = await self.ask(name, lambda s: submit(s, kind, body, content_type, self._key, name))
            except MintError as error:
                step.refusal = error
                return
            step.request_id = first.request_id
        step.answer = await self.retrieve(step.request_id, name)

    async def retrieve(self, request_id: str, name: str) -> bytes | None:
        """Poll for a result; None if the client has vanished before there is one."""
        request = RetrieveFutureRequest(request_id=request_id)
        http: Any = SimpleNamespace(headers={"accept": PROTOBUF})
        while not self._session.vanished:
            response: Response = await self.ask(
                f"poll {name}", lambda s: retrieve_future(request, http, s, self._key.owner)
            )
            if response.status_code == 200:
                return bytes(response.body)
        return None

    # --- samples --------------------------------------------------------------------------------------------

    async def _draw(self, draw: Draw) -> None:
        while draw.of is not None and draw.of.answer is None:
            if draw.of.refusal is not None or self._session.vanished:
                return
            await asyncio.sleep(0.5)
        if draw.answer is not None or self._session.vanished:
            return
        number = int(draw.of.name) if draw.of is not None else BASE_SAMPLER
        if draw.of is None:
            session_id = self._session.session_id
            wanted = CreateSamplingSessionRequest(
                session_id=session_id, sampling_session_seq_id=number, base_model=MODEL
            )
            await self.ask("create_sampler", lambda s: create_sampling_session(wanted, s, self._key.owner))
        if draw.request_id is None:
            body = sample_body(sampler_id_of(self._session.session_id, number), draw)
            kind = KINDS["sample"]
            first = await self.ask(f"sample {number}", lambda s: submit(s, kind, body, JSON, self._key))
            draw.request_id = first.request_id
        if draw.cancelled and not draw.cancel_known:
            request = CancelFutureRequest(request_id=draw.request_id)
            await self.ask("cancel", lambda s: cancel_future(request, s, self._key.owner))
            draw.cancel_known = True
        draw.answer = await self.retrieve(draw.request_id, f"sample {number}")


PROMPT = [4, 8, 15]
DRAWN = 3


def sample_body(sampler_id: str, draw: Draw) -> bytes:
    body = {
        "sampling_session_id": sampler_id,
        "seq_id": draw.number,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
        "num_samples": 1,
        "sampling_params": {"max_tokens": DRAWN, "seed": draw.seed},
    }
    return json_body(body)[0]
