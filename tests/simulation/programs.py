"""What clients do, and what must come of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from mint.engine.core import AdamParams
from mint.errors import MintError
from mint.server.operations.training import run_id_of
from mint.server.operations.weights import sampler_id_of
from mint.wire import messages_pb2 as pb
from mint.wire.passes import JSON, PROTOBUF, encode_pass_output
from tests.dispatch.fakes import MODEL
from tests.server.inprocess import datum
from tests.simulation.arithmetic import DEADLY_RATE, POISONED, State, fresh, loaded


class What(StrEnum):
    """One operation of a run."""

    CREATE = "create_model"
    PASS = "forward_backward"
    FORWARD = "forward"
    STEP = "optim_step"
    TRAIN_STEP = "train_step"
    SAVE = "save_weights"
    EXPORT = "save_weights_for_sampler"
    REVISION = "a revision without a name"
    LOAD = "load_weights"
    REFUSED = "refused by the server"
    MISSING = "never sent"
    POISONED = "refused by the worker"
    DEADLY = "kills its worker"


USUAL = {
    What.PASS: 5,
    What.STEP: 4,
    What.TRAIN_STEP: 2,
    What.FORWARD: 1,
    What.SAVE: 2,
    What.EXPORT: 1,
    What.REVISION: 1,
    What.LOAD: 1,
    What.REFUSED: 1,
    What.MISSING: 0.4,
    What.POISONED: 0.5,
}
KINDS = {
    What.LOAD: "load_weights",
    What.REVISION: "save_weights_for_sampler",
    What.REFUSED: "optim_step",
    What.POISONED: "forward_backward",
    What.DEADLY: "optim_step",
}
"""As the journal has them, where that is another name."""


@dataclass
class Step:
    """An operation, and what its client knows of it. An `alone` one is sent when all before it have ended.

    An `uncounted` one is sent without a number, and nothing after it before it has ended.
    """

    number: int
    what: What
    alone: bool = False
    uncounted: bool = False
    tokens: tuple[int, ...] = (5, 6)
    rate: float = 1e-4
    name: str = ""
    source: str = ""
    with_optimizer: bool = False
    ttl: int | None = None
    request_id: str | None = None
    refusal: MintError | None = None
    answer: bytes | None = None

    @property
    def over(self) -> bool:
        return self.answer is not None or self.refusal is not None or self.what == What.MISSING

    @property
    def kind(self) -> str:
        return "save_and_create" if self.uncounted else KINDS.get(self.what, str(self.what))


@dataclass
class Run:
    """The program of one run; `session_id` is settled by the server."""

    index: int
    steps: list[Step]
    window: int
    session_id: str = ""

    @property
    def run_id(self) -> str:
        return run_id_of(self.session_id, self.index)

    def path(self, segment: str, name: str) -> str:
        return f"tinker://{self.run_id}/{segment}/{name}"


@dataclass
class Draw:
    """A sample of a revision without a name that a step has saved, or of the base model."""

    number: int
    of: Step | None
    seed: int
    cancelled: bool
    request_id: str | None = None
    answer: bytes | None = None
    cancel_known: bool = False


@dataclass
class Session:
    """One client's. It `vanishes` when it has sent so many operations."""

    key: int
    runs: list[Run]
    draws: list[Draw]
    vanishes: int | None
    sent: int = 0
    session_id: str = ""
    ended: bool = False

    @property
    def vanished(self) -> bool:
        return self.vanishes is not None and self.sent >= self.vanishes


def make_session(random: Random, key: int, *, size: int, deadly: bool) -> Session:
    runs = [_make_run(random, 0, size, deadly=deadly)]
    if random.random() < 0.4:
        runs.append(_make_run(random, 1, max(2, size // 2), deadly=False))
    vanishes = random.randint(1, size) if random.random() < 0.15 else None
    revisions = [step for run in runs for step in run.steps if step.what == What.REVISION]
    sources: list[Step | None] = [None] if random.random() < 0.3 else []
    draws = [
        Draw(number, of, random.getrandbits(20), random.random() < 0.3)
        for of in [*sources, *revisions]
        for number in range(random.randint(1, 2))
    ]
    return Session(key, runs, draws, vanishes)


def _make_run(random: Random, index: int, size: int, *, deadly: bool) -> Run:
    steps = [Step(0, What.CREATE, rate=random.randrange(1, 1000))]
    saved: list[str] = []
    for number in range(1, size + 1):
        steps.append(_make_step(random, index, number, saved))
    if deadly:
        steps[random.randrange(1, size + 1)] = Step(size, What.DEADLY, rate=DEADLY_RATE)
        for number, step in enumerate(steps):
            step.number = number
    if steps[-1].what == What.MISSING:  # nothing would ever wait for it
        steps[-1].what = What.STEP
    sent = steps[0]
    for before, step in pairwise(steps):
        # a number that never comes has no place before an operation that is not counted
        by_chance = step.number % 4 > 0
        step.uncounted = step.what == What.EXPORT and before.what != What.MISSING and by_chance
        step.alone |= step.uncounted or sent.uncounted
        sent = step if step.what != What.MISSING else sent
    return Run(index, steps, random.choice((1, 2, 4, 8)))


def _make_step(random: Random, index: int, number: int, saved: list[str]) -> Step:
    what = random.choices(list(USUAL), list(USUAL.values()))[0]
    if what == What.LOAD and not saved:
        what = What.PASS
    step = Step(number, what, alone=random.random() < 0.2, rate=random.randrange(1, 100) * 1e-6)
    step.tokens = tuple(random.choices(range(3, 70), k=random.randint(1, 4)))
    if what == What.POISONED:
        step.tokens = (*step.tokens, POISONED)
    elif what == What.SAVE:
        step.name = random.choice(saved) if saved and random.random() < 0.3 else f"s{number}"
        saved.append(step.name)
    elif what == What.EXPORT:
        step.name, step.ttl = f"e{number}", random.choice((None, 3600))
    elif what == What.REVISION:
        step.name = str(100 * index + number)
    elif what == What.LOAD:
        step.alone, step.source, step.with_optimizer = True, random.choice(saved), random.random() < 0.5
    return step


def body_of(run: Run, step: Step) -> tuple[bytes, str]:
    """As the SDK sends it, with its content type."""
    counted = step.number - sum(each.uncounted for each in run.steps[: step.number])
    base: dict[str, Any] = {"model_id": run.run_id, "seq_id": None if step.uncounted else counted}
    adam = {"learning_rate": step.rate}
    match step.what:
        case What.CREATE:
            lora = {"rank": 4, "seed": round(step.rate)}
            base = {"session_id": run.session_id, "model_seq_id": run.index, "base_model": MODEL}
            return json_body(base | {"lora_config": lora})
        case What.PASS | What.FORWARD | What.POISONED:
            message = pb.ForwardBackwardRequest(**base, data=[datum(step.tokens, step.tokens)], loss_fn="cross_entropy")
            return message.SerializeToString(), PROTOBUF
        case What.STEP | What.DEADLY:
            return json_body(base | {"adam_params": adam})
        case What.REFUSED:
            return json_body(base | {"adam_params": {"beta1": 2.0}})
        case What.TRAIN_STEP:
            inputs = {"target_tokens": {"data": list(step.tokens), "dtype": "int64"}}
            chunk = {"type": "encoded_text", "tokens": list(step.tokens)}
            data = [{"model_input": {"chunks": [chunk]}, "loss_fn_inputs": inputs}]
            part = {"data": data, "loss_fn": "cross_entropy"}
            return json_body(base | {"forward_backward_input": part, "adam_params": adam})
        case What.SAVE:
            return json_body(base | {"path": step.name, "overwrite": True})
        case What.EXPORT if step.uncounted:
            return json_body(base | {"name": step.name, "ttl_seconds": step.ttl})
        case What.EXPORT:
            return json_body(base | {"path": step.name, "ttl_seconds": step.ttl})
        case What.REVISION:
            return json_body(base | {"sampling_session_seq_id": int(step.name)})
        case What.LOAD:
            return json_body(base | {"path": run.path("weights", step.source), "optimizer": step.with_optimizer})
    raise AssertionError(step)


def json_body(body: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(body).encode(), JSON


@dataclass
class Reference:
    """A run that nothing has ever disturbed."""

    run: Run
    state: State = field(default_factory=lambda: fresh(0))
    saved: dict[str, State] = field(default_factory=dict)
    revisions: dict[int, State] = field(default_factory=dict)

    def apply(self, step: Step) -> bytes | str:
        """The answer that is due; for what must fail, a text that the failure has."""
        tokens, adam = np.array(step.tokens, np.int32), AdamParams(learning_rate=step.rate)
        match step.what:
            case What.CREATE:
                self.state = fresh(round(step.rate))
                return json_body({"model_id": self.run.run_id, "type": "create_model"})[0]
            case What.PASS | What.FORWARD:
                passed = self.state.backward(tokens, forward_only=step.what == What.FORWARD)
                return encode_pass_output(passed.logprobs, passed.metrics)
            case What.STEP:
                return json_body({"metrics": self.state.step(adam).metrics})[0]
            case What.TRAIN_STEP:
                passed = self.state.backward(tokens)
                return encode_pass_output(passed.logprobs, passed.metrics | self.state.step(adam).metrics)
            case What.SAVE:
                self.saved[step.name] = self.state.saved()
                return json_body({"path": self.run.path("weights", step.name), "type": "save_weights"})[0]
            case What.EXPORT if step.uncounted:
                return self._saved_and_created(step)
            case What.EXPORT:
                return json_body({"path": self.run.path("sampler_weights", step.name)})[0]
            case What.REVISION:
                self.revisions[step.number] = self.state.exported()
                return json_body({"sampling_session_id": sampler_id_of(self.run.session_id, int(step.name))})[0]
            case What.LOAD:
                self.state = loaded(self.saved[step.source], with_optimizer=step.with_optimizer)
                path = self.run.path("weights", step.source)
                return json_body({"path": path, "model_id": self.run.run_id, "type": "load_weights"})[0]
            case What.POISONED:
                return "not finite"
            case What.DEADLY:
                return "engine workers ended over this operation"
        return "beta1"

    def _saved_and_created(self, step: Step) -> bytes:
        place = hashlib.sha256(f"{self.run.run_id}/{step.number}".encode()).digest()
        sampler_id = sampler_id_of(self.run.session_id, 1 << 52 | int.from_bytes(place[:6]))
        path = self.run.path("sampler_weights", step.name)
        return json_body({"sampling_session_id": sampler_id, "path": path, "type": "save_and_create"})[0]
