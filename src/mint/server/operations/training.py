"""Operations that train: create_model, forward_backward and forward, optim_step."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from time import time
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import (
    CreateRun,
    ForwardBackward,
    LoraShape,
    OptimStep,
    Passed,
    Result,
    Stepped,
)
from mint.engine.loss_graph import LossGraph
from mint.engine.loss_specs import check_forward_backward
from mint.engine.policy_specs import check_policy_pass
from mint.engine.rollout_correction import parse_rollout_correction
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.custom_loss import custom_loss_facts, recall_loss
from mint.server.operations.datums import read_data
from mint.server.operations.kind import Completion, Kind, expect, parse_json
from mint.server.operations.optimizers import adam_params, refuse_optimizer
from mint.store import repository
from mint.store.schema import Operation, Run
from mint.wire.passes import PROTOBUF, PassRequest, decode_pass, encode_pass_output
from mint.wire.requests import CreateModelRequest, OptimStepRequest


def run_id_of(session_id: str, model_seq_id: int) -> str:
    """The id that clients compute for themselves: it must be exactly this."""
    return f"{session_id}:train:{model_seq_id}"


class CreateModel(Kind[CreateModelRequest]):
    """A new run with a fresh LoRA."""

    name = "create_model"
    ordered = True
    replayed = True

    @override
    def parse(self, body: bytes, content_type: str) -> CreateModelRequest:
        return parse_json(CreateModelRequest, body)

    @override
    def stream(self, request: CreateModelRequest) -> tuple[str, int]:
        return run_id_of(request.session_id, request.model_seq_id), 0

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: CreateModelRequest, owner: str
    ) -> dict[str, Any]:
        access.session(connection, request.session_id, owner)
        model = catalog.model(request.base_model)
        lora = request.lora_config
        if lora.rank > model.max_lora_rank:
            raise BadRequestError(
                f"is {lora.rank}; this server takes at most {model.max_lora_rank}", field="lora_config.rank"
            )
        if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
            raise BadRequestError(
                "trains nothing: all of train_attn, train_mlp and train_unembed are false",
                field="lora_config",
            )
        refuse_optimizer(request.optimizer_config)
        if lora.train_vision:
            raise BadRequestError(
                "is not served: vision tower and projector stay frozen", field="lora_config.train_vision"
            )
        if model.policy is not None and request.rollout_correction_config is not None:
            raise BadRequestError(f"is not served for {model.name}", field="rollout_correction_config")
        if request.rollout_correction_config is not None:
            parse_rollout_correction(request.rollout_correction_config)
        stream, _ = self.stream(request)
        seed = lora.seed if lora.seed is not None else _seed_from(stream)
        return {
            "model": request.base_model,
            "lora": {
                "rank": lora.rank,
                "seed": seed % (1 << 63),
                "train_attn": lora.train_attn,
                "train_mlp": lora.train_mlp,
                "train_unembed": lora.train_unembed,
            },
            "rollout_correction": request.rollout_correction_config,
        }

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: CreateModelRequest) -> CreateRun:
        return CreateRun(operation.stream, LoraShape(**operation.facts["lora"]))

    @override
    def record(self, connection: Connection, operation: Operation, request: CreateModelRequest) -> None:
        lora = operation.facts["lora"]
        run = Run(
            run_id=operation.stream,
            session_id=request.session_id,
            owner=operation.owner,
            base_model=request.base_model,
            lora_rank=lora["rank"],
            lora_seed=lora["seed"],
            train_attn=lora["train_attn"],
            train_mlp=lora["train_mlp"],
            train_unembed=lora["train_unembed"],
            created_at=time(),
            user_metadata=request.user_metadata,
            rollout_correction=operation.facts["rollout_correction"],
        )
        repository.insert(connection, run)

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: CreateModelRequest, result: Result) -> Completion:
        return Completion.json({"model_id": operation.stream, "type": "create_model"})


def _seed_from(text: str) -> int:
    """A seed for a run that asked for none: different for each run, the same at every replay."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


class Pass(Kind[PassRequest]):
    """forward_backward, which newer SDKs also send for a forward, with forward_only."""

    name = "forward_backward"
    ordered = True
    replayed = True
    reads_images = True

    @override
    def parse(self, body: bytes, content_type: str) -> PassRequest:
        return decode_pass(body, content_type)

    @override
    def stream(self, request: PassRequest) -> tuple[str, int | None]:
        return request.model_id, request.seq_id

    @override
    def resolve(self, connection: Connection, catalog: Catalog, request: PassRequest, owner: str) -> dict[str, Any]:
        run = access.run(connection, request.model_id, owner)
        facts = {"model": run.base_model, "rollout_correction": run.rollout_correction}
        return {**facts, **custom_loss_facts(connection, catalog, request, owner)}

    @override
    def recall(self, connection: Connection, catalog: Catalog, facts: dict[str, Any]) -> dict[str, Any]:
        return recall_loss(connection, catalog, facts)

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: PassRequest) -> ForwardBackward:
        graph: LossGraph | None = operation.facts.get("loss_graph")
        config = {name: value for name, value in request.loss_config.items() if graph is None or name != "loss_id"}
        texts = [name for name, value in config.items() if isinstance(value, str)]
        if texts:
            raise BadRequestError("must be a number", field=f"loss_fn_config.{texts[0]}")
        model = catalog.model(operation.facts["model"])
        # a pass that was journaled before there was rollout correction has no such fact
        correction = operation.facts.get("rollout_correction")
        command = ForwardBackward(
            request.model_id,
            tuple(read_data(request.data, model, catalog.image_reader(model, operation.owner))),
            request.loss_fn,
            {name: float(value) for name, value in config.items()},
            request.forward_only,
            loss_graph=graph,
            rollout_correction=parse_rollout_correction(correction) if correction is not None else None,
        )
        check = check_forward_backward if model.policy is None else check_policy_pass
        return check(command, model)

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: PassRequest, result: Result) -> Completion:
        passed = expect(result, Passed)
        return Completion(encode_pass_output(passed.logprobs, passed.metrics), PROTOBUF)


class ForwardPass(Pass):
    """forward, which adds no gradients whatever the body says."""

    name = "forward"
    replayed = False

    @override
    def parse(self, body: bytes, content_type: str) -> PassRequest:
        return replace(super().parse(body, content_type), forward_only=True)


class OptimizerStep(Kind[OptimStepRequest]):
    """optim_step."""

    name = "optim_step"
    ordered = True
    replayed = True

    @override
    def parse(self, body: bytes, content_type: str) -> OptimStepRequest:
        return parse_json(OptimStepRequest, body)

    @override
    def stream(self, request: OptimStepRequest) -> tuple[str, int]:
        return request.model_id, request.seq_id

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: OptimStepRequest, owner: str
    ) -> dict[str, Any]:
        return {"model": access.run(connection, request.model_id, owner).base_model}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: OptimStepRequest) -> OptimStep:
        return OptimStep(request.model_id, adam_params(request))

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: OptimStepRequest, result: Result) -> Completion:
        return Completion.json({"metrics": expect(result, Stepped).metrics})
