"""save_weights_external: a run's weights in PEFT's format for download, encrypted to age recipients where given.

The worker writes the files in the clear to the staging folder; they are encrypted before the folder is committed, so no
checkpoint has them in the clear.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pyrage
from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import ExportRevision, Result
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, parse_json
from mint.server.operations.weights import checkpoint_row, put, refuse_taken, run_facts, staging_folder
from mint.store import files
from mint.store.schema import Operation
from mint.wire.paths import CheckpointPath, Segment
from mint.wire.requests import SaveWeightsExternalRequest

Recipient: TypeAlias = pyrage.x25519.Recipient | pyrage.ssh.Recipient

FIELD = "age_encryption_recipients"
SUFFIX = ".age"


class SaveExternal(Kind[SaveWeightsExternalRequest]):
    """save_weights_external: what it leaves can be downloaded, and neither sampled nor loaded."""

    name = "save_weights_external"
    ordered = True
    replayed = False
    saves = True
    segment: Segment = "external_weights"

    @override
    def parse(self, body: bytes, content_type: str) -> SaveWeightsExternalRequest:
        request = parse_json(SaveWeightsExternalRequest, body)
        _recipients(request)
        return request

    @override
    def stream(self, request: SaveWeightsExternalRequest) -> tuple[str, int]:
        return request.model_id, request.seq_id

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: SaveWeightsExternalRequest, owner: str
    ) -> dict[str, Any]:
        run = access.run(connection, request.model_id, owner)
        refuse_taken(connection, CheckpointPath(run.run_id, self.segment, request.path))
        return run_facts(run)

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SaveWeightsExternalRequest) -> ExportRevision:
        return ExportRevision(request.model_id, staging_folder(catalog, operation), key=operation.request_id)

    @override
    def seal(self, folder: Path, request: SaveWeightsExternalRequest) -> None:
        recipients = _recipients(request)
        for path in sorted(folder.iterdir()) if recipients else ():
            sealed = path.with_name(path.name + SUFFIX)
            pyrage.encrypt_file(str(path), str(sealed), recipients)
            files.sync(sealed)
            path.unlink()

    @override
    def finish(
        self, catalog: Catalog, operation: Operation, request: SaveWeightsExternalRequest, result: Result
    ) -> Completion:
        path = str(CheckpointPath(request.model_id, self.segment, request.path))
        entries = files.read_manifest(catalog.checkpoint_dir / operation.request_id).values()
        size = sum(entry.size for entry in entries)  # encrypted, it is more than the worker wrote
        row = replace(checkpoint_row(operation, request, path, result), size_bytes=size)
        answer = {"path": path, "size_bytes": size, "type": "save_weights_external"}
        return Completion.json(answer, put(row, overwrite=False))


def _recipients(request: SaveWeightsExternalRequest) -> list[Recipient]:
    """Those of a request.

    Raises:
        BadRequestError: one is neither an age key nor an SSH public key.
    """
    texts = request.age_encryption_recipients or []
    return [_recipient(text, f"{FIELD}[{place}]") for place, text in enumerate(texts)]


def _recipient(text: str, field: str) -> Recipient:
    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(text)
    except pyrage.RecipientError as error:
        raise BadRequestError(f"is neither an age1… key nor an SSH public key: {error}", field=field) from None
