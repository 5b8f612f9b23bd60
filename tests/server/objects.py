"""One of each kind of object, and requests that are good but for whose objects they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .inprocess import MODEL, Api


@dataclass(frozen=True)
class Objects:
    """One of each that somebody has."""

    session: str
    run: str
    sampler: str
    path: str
    request: str
    loss: str

    @classmethod
    async def of(cls, api: Api) -> Objects:
        session = await api.session()
        run, sampler = await api.run(session), await api.sampler(session)
        saved = await api.ok("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
        path = (await api.retrieve(saved["request_id"]))["path"]
        loss = await api.result("create_custom_loss", {"session_id": session, **LOSS})
        return cls(session, run, sampler, path, saved["request_id"], loss["loss_id"])


LOSS: dict[str, Any] = {
    "custom_loss_seq_id": 0,
    "name": "mean",
    "inputs": [{"name": "logprobs", "rank": 1}],
    "graph": {
        "format": 1,
        "nodes": [
            {"op": "placeholder", "name": "logprobs", "target": "logprobs", "args": [], "kwargs": {}},
            {"op": "call_method", "name": "sum_1", "target": "sum", "args": [{"ref": "logprobs"}], "kwargs": {}},
            {
                "op": "output",
                "name": "output",
                "target": "output",
                "args": [{"tuple": [{"ref": "sum_1"}, {"dict": {}}]}],
                "kwargs": {},
            },
        ],
    },
}
LORA = {"base_model": MODEL, "lora_config": {"rank": 4}}
SAMPLE = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}
OLD_DATUM = {
    "model_input": {"chunks": [{"tokens": [5, 6, 7]}]},
    "loss_fn_inputs": {"target_tokens": {"data": [6, 7, 8], "dtype": "int64", "shape": [3]}},
}
PASS = {"data": [OLD_DATUM], "loss_fn": "cross_entropy"}
REVERSE_KL = {"data": [{"student_input": [5, 6], "reference_input": [5, 6], "target_tokens": [6, 7]}]}
