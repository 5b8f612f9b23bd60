"""Every route of the application, walked without a key and with a stranger's.

A route that is not listed here fails these tests: say for a new one what a stranger must be refused on it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

import mint
from mint.store.keys import Role
from mint.wire import messages_pb2 as pb

from .inprocess import MODEL, PROTOBUF, Api, Serve, World, datum, play
from .key_rows import add
from .objects import LORA, LOSS, PASS, REVERSE_KL, SAMPLE, Objects
from .uploads.made import adapter, tar

API = "/api/v1"
OPENAI = ("/v1", "/oai/api/v1")


def protobuf(run: str, **fields: Any) -> dict[str, Any]:
    names = {"model_id": run, "seq_id": 2, "data": [datum()], "loss_fn": "cross_entropy", **fields}
    message = pb.ForwardBackwardRequest(**names)
    return {"content": message.SerializeToString(), "headers": {"Content-Type": PROTOBUF}}


Requests = Callable[[Objects, Objects], list[dict[str, Any]]]
"""What a stranger tries on a route; the arguments are another's objects and the stranger's own."""


def bodies(*fields: Callable[[Objects, Objects], dict[str, Any]]) -> Requests:
    return lambda theirs, mine: [{"json": each(theirs, mine)} for each in fields]


def on_run(**fields: Any) -> Requests:
    return bodies(lambda theirs, _: {"model_id": theirs.run, "seq_id": 2, **fields})


def on_checkpoint(**options: Any) -> Requests:
    return lambda theirs, _: [{"run_id": theirs.run, "segment": "weights", "name": "a", **options}]


def scoped(named: Callable[[Objects], dict[str, str]]) -> Requests:
    scopes = [{"params": {"access_scope": scope}} for scope in ("owned", "accessible")]
    return lambda theirs, _: [{**named(theirs), **scope} for scope in scopes]


NOTHING: Requests = lambda _theirs, _mine: [{}]  # noqa: E731  # one request without anything in it

OPEN = {f"GET {API}/healthz", "GET /healthz", "GET /readyz"}
"""Answered without a key; they tell of nobody."""

LINKS = {
    f"GET {API}/traces/{{session_id}}",
    f"GET {API}/checkpoint_archives/{{checkpoint_id}}",
    f"GET {API}/checkpoint_files/{{checkpoint_id}}/{{file}}",
}
"""Answered to whoever has a signed link; a key does not help."""

SERVED = {f"GET {API}/tokenizer", f"GET {API}/tokenizer/file"}
"""Of base models, which are everybody's."""

ONE = f"{API}/training_runs/{{run_id}}/checkpoints/{{segment}}/{{name}}"

ACTING = f"{API}/mint/action_sessions/{{action_session_id}}"
SEEN = {"model_input": {"chunks": [{"tokens": [1]}]}}

REFUSED: dict[str, Requests] = {
    f"POST {API}/session_heartbeat": bodies(lambda theirs, _: {"session_id": theirs.session}),
    f"POST {API}/sessions/{{session_id}}/finish": lambda theirs, _: [{"session_id": theirs.session, "json": {}}],
    f"POST {API}/get_info": bodies(lambda theirs, _: {"model_id": theirs.run}),
    f"POST {API}/create_model": bodies(
        lambda theirs, _: {"session_id": theirs.session, "model_seq_id": 1, **LORA},
        lambda theirs, _: {"session_id": theirs.session, "model_seq_id": 0, **LORA},
    ),
    f"POST {API}/create_custom_loss": bodies(lambda theirs, _: {"session_id": theirs.session, **LOSS}),
    f"POST {API}/forward_backward": lambda theirs, mine: [
        protobuf(theirs.run),
        protobuf(mine.run, loss_fn="custom", loss_fn_config_v2={"loss_id": pb.LossConfigValue(text=theirs.loss)}),
        {"json": {"model_id": theirs.run, "seq_id": 2, "forward_backward_input": PASS}},
    ],
    f"POST {API}/forward": on_run(forward_input=PASS),
    f"POST {API}/optim_step": bodies(
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 2},
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 1},
    ),
    f"POST {API}/train_step": on_run(forward_backward_input=PASS, adam_params={}),
    f"POST {API}/mint/forward_backward_reverse_kl": bodies(
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 2, **REVERSE_KL},
        lambda theirs, mine: {"model_id": mine.run, "seq_id": 4, "reference_model_path": theirs.path, **REVERSE_KL},
    ),
    f"POST {API}/mint/vla/train_step": bodies(
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 2, "loss_fn": "cross_entropy", "data": []},
        lambda theirs, _: {"model_id": theirs.run, "loss_fn": "cross_entropy", "data": []},
    ),
    f"POST {API}/mint/action_sessions": bodies(
        lambda theirs, _: {"session_id": theirs.session, "base_model": MODEL},
        lambda theirs, mine: {"session_id": mine.session, "model_path": theirs.path},
    ),
    f"DELETE {ACTING}": lambda theirs, _: [{"action_session_id": theirs.sampler}],
    f"POST {ACTING}/act": lambda theirs, _: [{"action_session_id": theirs.sampler, "json": {"observation": SEEN}}],
    f"POST {ACTING}/act_batch": lambda theirs, _: [
        {"action_session_id": theirs.sampler, "json": {"observations": [SEEN]}}
    ],
    f"DELETE {API}/models/{{model_id}}": lambda theirs, _: [{"model_id": theirs.run}],
    f"POST {API}/save_weights": on_run(path="b"),
    f"POST {API}/save_weights_for_sampler": bodies(
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 2, "path": "b"},
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 2, "sampling_session_seq_id": 5},
    ),
    f"POST {API}/save_weights_external": on_run(path="b"),
    f"POST {API}/create_model_from_state": bodies(
        lambda theirs, mine: {"session_id": mine.session, "model_seq_id": 9, "path": theirs.path},
        lambda theirs, mine: {"session_id": theirs.session, "model_seq_id": 9, "path": mine.path},
    ),
    f"POST {API}/compute_logprobs": bodies(
        lambda theirs, _: {"sampling_session_id": theirs.sampler, **SAMPLE},
        lambda theirs, _: {"model_path": theirs.path, **SAMPLE},
    ),
    f"POST {API}/load_weights": bodies(
        lambda theirs, _: {"model_id": theirs.run, "seq_id": 2, "path": theirs.path},
        lambda theirs, mine: {"model_id": mine.run, "seq_id": 3, "path": theirs.path},
        lambda theirs, mine: {"session_id": mine.session, "model_seq_id": 9, "path": theirs.path},
        lambda theirs, mine: {"session_id": theirs.session, "model_seq_id": 9, "path": mine.path},
        lambda theirs, mine: {"model_id": mine.run, "seq_id": 5, "path": theirs.path, "weights_access_token": "x"},
    ),
    f"POST {API}/create_sampling_session": bodies(
        lambda theirs, _: {"session_id": theirs.session, "sampling_session_seq_id": 1, "base_model": MODEL},
        lambda theirs, mine: {"session_id": mine.session, "sampling_session_seq_id": 1, "model_path": theirs.path},
    ),
    f"GET {API}/samplers/{{sampler_id}}": lambda theirs, _: [{"sampler_id": theirs.sampler}],
    f"POST {API}/asample": bodies(lambda theirs, _: {"sampling_session_id": theirs.sampler, **SAMPLE}),
    f"POST {API}/join_sampling_session": bodies(lambda theirs, _: {"sampling_session_id": theirs.sampler}),
    f"POST {API}/retrieve_future": bodies(lambda theirs, _: {"request_id": theirs.request}),
    f"POST {API}/retrieve_futures": bodies(lambda theirs, _: {"target": {"sampling_session_id": theirs.sampler}}),
    f"POST {API}/cancel_future": bodies(lambda theirs, _: {"request_id": theirs.request}),
    f"GET {API}/sessions/{{session_id}}": scoped(lambda theirs: {"session_id": theirs.session}),
    f"GET {API}/sessions/{{session_id}}/trace_export": lambda theirs, _: [{"session_id": theirs.session}],
    f"PUT {API}/sessions/{{session_id}}/project": lambda theirs, _: [
        {"session_id": theirs.session, "json": {"project_id": "p"}}
    ],
    f"GET {API}/training_runs/{{run_id}}": scoped(lambda theirs: {"run_id": theirs.run}),
    f"GET {API}/training_runs/{{run_id}}/checkpoints": lambda theirs, _: [{"run_id": theirs.run}],
    f"DELETE {ONE}": on_checkpoint(),
    f"POST {ONE}/publish": on_checkpoint(),
    f"DELETE {ONE}/publish": on_checkpoint(),
    f"GET {ONE}/archive": on_checkpoint(),
    f"GET {ONE}/external_weights_urls": on_checkpoint(),
    f"POST {ONE}/access_tokens": on_checkpoint(json={}),
    f"GET {ONE}/access_tokens": on_checkpoint(),
    f"DELETE {ONE}/access_tokens/{{token_id}}": on_checkpoint(token_id=1),
    f"PUT {ONE}/ttl": on_checkpoint(json={"ttl_seconds": 3600}),
    f"POST {API}/weights_info": bodies(lambda theirs, _: {"tinker_path": theirs.path}),
    f"POST {API}/copy_weights": bodies(
        lambda theirs, _: {"source_path": theirs.path, "destination_project_id": "p"},
        lambda theirs, mine: {"source_path": mine.path, "session_id": theirs.session, "model_seq_id": 9},
    ),
    f"POST {API}/sampling_clients/save_and_create": on_run(name="b"),
    **{
        f"POST {API}/{path}": bodies(
            lambda theirs, mine: {"source_paths": [mine.path, theirs.path], "coefficients": [1, 1]},
            lambda theirs, mine: {
                "source_paths": [mine.path],
                "coefficients": [1],
                "output_path": f"tinker://{theirs.run}/sampler_weights/b",
            },
        )
        for path in ("mint/checkpoints/interpolate", "checkpoints/interpolate")
    },
    "GET /metrics": NOTHING,  # an admin's
}
for prefix in OPENAI:
    REFUSED |= {
        f"GET {prefix}/models/{{name}}": lambda theirs, _: [{"name": theirs.path}],
        f"POST {prefix}/completions": bodies(lambda theirs, _: {"model": theirs.path, "prompt": "a"}),
        f"POST {prefix}/chat/completions": bodies(
            lambda theirs, _: {"model": theirs.path, "messages": [{"role": "user", "content": "a"}]}
        ),
    }
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
WINDOW = {"starting_on": HOUR.isoformat(), "ending_before": (HOUR + timedelta(hours=2)).isoformat()}
OWN: dict[str, dict[str, Any]] = {
    f"POST {API}/client/config": {"json": {}},
    f"POST {API}/client/dynamic_config": {"json": {}},
    f"POST {API}/telemetry": {"json": {}},
    f"GET {API}/get_server_capabilities": {},
    f"POST {API}/create_session": {"json": {}},
    f"POST {API}/auth/token": {},
    f"GET {API}/auth/apikey/me": {},
    f"GET {API}/audit": {},
    f"GET {API}/training_runs": {"params": {"access_scope": "accessible"}},
    f"GET {API}/checkpoints": {},
    f"POST {API}/checkpoints/upload": {"files": {"file": tar(adapter())}},
    f"GET {API}/sessions": {"params": {"access_scope": "accessible"}},
    f"POST {API}/sessions/search": {"json": {}},
    f"GET {API}/models": {},
    **{f"GET {prefix}/models": {} for prefix in OPENAI},
    f"GET {API}/billing/usage/events": {"params": WINDOW},
    f"GET {API}/billing/usage/checkpoints/current": {},
    f"DELETE {API}/auth/apikey/me": {},  # last: it ends the key
}
"""These name no object: whoever asks gets an answer, and nothing of anybody else in it."""


def kind_of(response: httpx.Response) -> str:
    """What an error is, as either API names it."""
    answer = response.json()
    return str(answer["error"]["code"] if "error" in answer else answer["type"])


def routes_of(app: FastAPI) -> set[str]:
    return {f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item}


async def walk(http: httpx.AsyncClient, route: str, request: dict[str, Any], key: str | None) -> httpx.Response:
    method, path = route.split()
    options = {name: value for name, value in request.items() if f"{{{name}}}" not in path}
    headers = {**options.pop("headers", {}), **({"X-API-Key": key} if key is not None else {})}
    return await http.request(method, path.format(**request), headers=headers, **options)


def test_every_route_is_walked(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            assert routes_of(world.app) == OPEN | LINKS | SERVED | REFUSED.keys() | OWN.keys()

    play(scene)
    for source in Path(mint.__path__[0]).rglob("server/**/*.py"):
        assert "include_in_schema" not in source.read_text(), f"{source} hides a route from the schema and this walk"


BAD_KEYS: tuple[dict[str, bytes], ...] = (
    {},
    {"X-API-Key": b""},
    {"X-API-Key": b"sk-wrong-secret"},
    {"X-API-Key": "é".encode()},
    {"X-API-Key": "eyJé".encode()},
    {"Authorization": b"Basic x"},
)


def test_no_route_without_a_good_key(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            for route in sorted(routes_of(world.app) - OPEN):
                for headers in BAD_KEYS:
                    response = await world.alice.http.request(*route.split(), content=b"{}", headers=headers)
                    assert response.status_code == 401, route
                    assert kind_of(response) in ("AuthenticationError", "InvalidTokenError", "invalid_api_key")
                    assert response.headers["www-authenticate"].startswith("Bearer")
            await world.services.started.wait()
            for route in OPEN:
                assert (await walk(world.alice.http, route, {}, None)).status_code == 200

    play(scene)


async def shown(api: Api) -> list[Any]:
    """All that is somebody's, as they see it."""
    lists = [(await api.send("GET", noun)).json() for noun in ("training_runs", "checkpoints")]
    return [*lists, await api.ok("sessions/search")]


async def refused_everywhere(world: World, stranger: Api) -> int:
    theirs, mine = await Objects.of(world.alice), await Objects.of(stranger)
    count, before = 0, await shown(world.alice)
    for route, requests in REFUSED.items():
        for request in requests(theirs, mine):
            response = await walk(world.alice.http, route, request, stranger.key)
            assert response.status_code == 403, (route, request, response.text)
            assert kind_of(response) in ("PermissionDeniedError", "permission_denied")
            count += 1
    # nothing of this spent a number of either, or left anything
    assert await shown(world.alice) == before
    await world.alice.step(theirs.run, 2)
    return count


def test_a_stranger_is_refused_on_every_object(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            refusals = await refused_everywhere(world, world.bob)
            entries = (await world.bob.send("GET", "audit")).json()["entries"]
            assert [entry["event"] for entry in entries].count("access_refuse") == refusals

    play(scene)


def test_an_admin_is_a_stranger_too(
    serve: Serve,
) -> None:
    async def scene() -> None:
        async with serve() as world:
            metrics = REFUSED.pop("GET /metrics")
            try:
                await refused_everywhere(world, world.admin)
            finally:
                REFUSED["GET /metrics"] = metrics
            assert (await walk(world.alice.http, "GET /metrics", {}, world.admin.key)).status_code == 200

    play(scene)


def test_nothing_of_anybody_else_is_in_an_answer(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            stranger, _ = await add(world, "sk-stranger-secret", owner="stranger", role=Role.USER)
            theirs, owner = await Objects.of(world.alice), (await world.alice.send("GET", "auth/apikey/me")).json()
            secrets = (*vars(theirs).values(), owner["details"]["org_details"]["name"])
            for route, request in OWN.items():
                response = await walk(world.alice.http, route, request, stranger.key)
                assert response.status_code in (200, 204), (route, response.text)
                assert not [secret for secret in secrets if secret in response.text], route

    play(scene)
