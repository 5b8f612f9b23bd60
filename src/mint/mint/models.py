"""A user's live runs: which there are, and giving their memory back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mint.client.submission import ask

if TYPE_CHECKING:
    from tinker import APIFuture, ServiceClient

PAGE = 1000


@dataclass(frozen=True)
class LiveModel:
    """A run whose session is open and whose client was heard of lately.

    `loaded` says whether a worker has it in memory, or is about to; otherwise its next operation has it rebuilt.
    """

    model_id: str
    base_model: str
    lora_rank: int
    session_id: str
    created_at: datetime
    loaded: bool
    user_metadata: dict[str, str] | None


def list_models(service_client: ServiceClient, offset: int = 0) -> APIFuture[list[LiveModel]]:
    """Your live runs, newest first; 1000 at most, after the first `offset`."""

    def read(answer: dict[str, Any]) -> list[LiveModel]:
        return [_model(row) for row in answer["models"]]

    return ask(service_client, "get", f"models?limit={PAGE}&offset={offset:d}", read)


def free_model(service_client: ServiceClient, model_id: str) -> APIFuture[None]:
    """Have a run's memory back, once what it was sent is done.

    Nothing is lost: its checkpoints stay, and its next operation has it rebuilt.
    """
    return ask(service_client, "delete", f"models/{quote(model_id, safe='')}", lambda _: None)


def _model(row: dict[str, Any]) -> LiveModel:
    return LiveModel(**{**row, "created_at": datetime.fromisoformat(row["created_at"])})
