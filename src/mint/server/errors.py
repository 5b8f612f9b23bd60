"""The one place where errors become responses."""

from __future__ import annotations

import json
import logging
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from typing_extensions import override

from mint.errors import (
    MAX_FIELD,
    SERVER_FAULT,
    AuthenticationError,
    BadRequestError,
    MintError,
    PermissionDeniedError,
    UnavailableError,
    shortened,
)
from mint.server.services import Services
from mint.store import audit
from mint.store.dialects import UNAVAILABLE
from mint.store.keys import Key

logger = logging.getLogger(__name__)


class ErrorResponse(JSONResponse):
    """An error as JSON in ASCII: it may quote what UTF-8 cannot write."""

    @override
    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def install(app: FastAPI) -> None:
    """Answer every error with `{"detail": str, …}`, as the SDK and its command line read it."""
    app.add_exception_handler(MintError, _mint_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in (UnicodeEncodeError, DataError, *UNAVAILABLE):
        app.add_exception_handler(kind, _meant)
    app.add_exception_handler(Exception, _unexpected)


async def _mint_error(request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, MintError)
    body: dict[str, object] = {"detail": str(error), "type": type(error).__name__}
    if error.field is not None:
        body["field"] = error.field
    if error.datum is not None:
        body["datum"] = error.datum
    return await refusal(request, error, body)


async def refusal(request: Request, error: MintError, body: dict[str, Any]) -> ErrorResponse:
    """A response that carries an error, in the shape of whichever API; the audit log learns of reaches for others'."""
    if isinstance(error, PermissionDeniedError):
        await _note_refusal(request, error)
    return ErrorResponse(body, error.status, _headers(error))


def _headers(error: MintError) -> dict[str, str]:
    if isinstance(error, AuthenticationError):
        return {"WWW-Authenticate": error.challenge}
    if error.retry_after is None:
        return {}
    # whole seconds for everybody, and what the SDK understands besides
    return {"Retry-After": str(ceil(error.retry_after)), "Retry-After-Ms": str(ceil(1000 * error.retry_after))}


async def _note_refusal(request: Request, error: PermissionDeniedError) -> None:
    """Somebody reached for what is not theirs: the audit log says who and for what."""
    services: Services = request.app.state.services
    key: Key | None = getattr(request.state, "caller", None)
    if key is None:
        return
    what = {"key_id": key.key_id, "method": request.method, "path": request.url.path, "reason": str(error)}
    try:
        await services.database.transaction(lambda c: audit.record(c, "access_refuse", key.owner, **what))
    except SQLAlchemyError:
        logger.exception("a refusal could not be written to the audit log")


def meant(error: Exception) -> MintError | None:
    """What an error of a library's says to a client; None if it is a fault of ours."""
    if isinstance(error, UnicodeEncodeError):
        # JSON can say half a pair of surrogates, which is text that no column of the database takes
        return BadRequestError("has text that is no Unicode: a lone surrogate", field="body")
    if isinstance(error, DataError):
        return BadRequestError("has a value that the database cannot keep, such as U+0000 in a text", field="body")
    if isinstance(error, UNAVAILABLE):
        logger.error("the database does not take it: %s", error.orig)
        return UnavailableError("the database cannot be used now; send the same again later")
    return None


async def _meant(request: Request, error: Exception) -> ErrorResponse:
    refused = meant(error)
    assert refused is not None
    return await _mint_error(request, refused)


def first_problem(error: RequestValidationError) -> tuple[dict[str, Any], str]:
    """What pydantic says of the first fault, and the path of the field; that is empty where it is the body."""
    first: dict[str, Any] = error.errors()[0]
    parts = [] if first["type"] == "json_invalid" else [str(part) for part in first["loc"] if part != "body"]
    return first, ".".join(parts)


async def _validation_error(_request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, RequestValidationError)
    first, field = first_problem(error)
    field = shortened(field, MAX_FIELD) or "body"
    detail = shortened(f"{field}: {first['msg']}")
    return ErrorResponse({"detail": detail, "type": "InvalidBodyError", "field": field}, 422)


async def _http_error(_request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, HTTPException)
    return ErrorResponse({"detail": error.detail}, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> ErrorResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ErrorResponse({"detail": SERVER_FAULT}, 500)
