"""`mint status`: how a server is, and what it does at this moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer

from mint.cli.api import Api, BaseUrl, reason
from mint.cli.tables import Json, out, show_facts, show_json, show_table, stop

Metrics: TypeAlias = dict[str, dict[str, float]]
"""Of each name, the values by the one label that it has; "" where it has none."""

ADMIN_ONLY = 403
USES = {"training": "trained", "prefill": "prefilled", "cached_prefill": "from the cache", "sampled": "sampled"}


def status(
    seconds: Annotated[float, typer.Option(help="To watch the tokens for.", min=0.1, max=60)] = 1.0,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show a server's health and models; with an admin's key also its queue and tokens per second."""
    api = Api(base_url)
    health = _health(api)
    document = {"base_url": api.base_url, **health, "models": _models(api) if health["checks"]["models"] else []}
    first = _metrics(api)
    if first is not None:
        started = time.monotonic()
        time.sleep(seconds)
        last = _metrics(api) or first
        document |= _activity(first, last, time.monotonic() - started)
    if as_json:
        show_json(document)
    else:
        _show(document)
    if health["status"] != "ready":
        raise typer.Exit(1)


def _health(api: Api) -> dict[str, Any]:
    """Also of a server that is not ready, which says so with 503."""
    response = api.send("GET", "/readyz")
    try:
        answer: dict[str, Any] = response.json()
        return {"status": answer["status"], "checks": dict(answer["checks"])}
    except (ValueError, KeyError, TypeError):
        stop(reason(response))


def _models(api: Api) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = api.ask("GET", "get_server_capabilities")["supported_models"]
    return models


def _metrics(api: Api) -> Metrics | None:
    """What the server counts; None where the key may not see it."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    response = api.send("GET", "/metrics")
    if response.status_code == ADMIN_ONLY:
        return None
    if not response.is_success:
        stop(reason(response))
    found: Metrics = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})["/".join(sample.labels.values())] = sample.value
    return found


def _activity(first: Metrics, last: Metrics, seconds: float) -> dict[str, Any]:
    tokens, before = last.get("mint_tokens_total", {}), first.get("mint_tokens_total", {})
    return {
        "sessions": _total(last, "mint_sessions"),
        "runs": _total(last, "mint_runs"),
        "queue": {kind: int(count) for kind, count in last.get("mint_queue_depth", {}).items()},
        "samples_waiting": _total(last, "mint_samples_waiting"),
        "samples_running": _total(last, "mint_samples_running"),
        "tokens_per_second": {use: (tokens.get(use, 0.0) - before.get(use, 0.0)) / seconds for use in USES},
    }


def _total(metrics: Metrics, name: str) -> int:
    return int(sum(metrics.get(name, {}).values()))


def _show(document: Mapping[str, Any]) -> None:
    failing = [name for name, good in document["checks"].items() if not good]
    facts: dict[str, str | None] = {
        "server": document["base_url"],
        "state": document["status"] + (f" ({', '.join(failing)})" if failing else ""),
    }
    if "queue" in document:
        queue = ", ".join(f"{count} {kind}" for kind, count in document["queue"].items())
        rates = document["tokens_per_second"]
        facts |= {
            "clients": f"{document['sessions']} sessions, {document['runs']} runs",
            "queue": queue or "empty",
            "samples": f"{document['samples_running']} running, {document['samples_waiting']} waiting",
            "tokens/s": ", ".join(f"{rates[use]:,.0f} {words}" for use, words in USES.items()),
        }
    show_facts(facts)
    if document["models"]:
        out.print()
        columns = {
            "context": lambda model: f"{model['max_context_length']:,}",
            "base model": lambda model: str(model["model_name"]),
        }
        show_table(document["models"], columns)
    if "queue" not in document:
        out.print("\nqueue and tokens per second are shown to an admin's key", style="dim")
