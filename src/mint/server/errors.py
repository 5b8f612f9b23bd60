"""The one place where errors become responses."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from typing_extensions import override

from mint.errors import MAX_FIELD, BadRequestError, MintError, shortened

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Answer every error with `{"detail": str, …}`, as the SDK and its command line read it."""
    app.add_exception_handler(MintError, _mint_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(UnicodeEncodeError, _no_unicode)
    app.add_exception_handler(Exception, _unexpected)


class ErrorResponse(JSONResponse):
    """An error as JSON in ASCII: it may quote what UTF-8 cannot write."""

    @override
    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


async def _mint_error(_request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, MintError)
    body: dict[str, object] = {"detail": str(error), "type": type(error).__name__}
    if error.field is not None:
        body["field"] = error.field
    if error.datum is not None:
        body["datum"] = error.datum
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return ErrorResponse(body, error.status, headers)


async def _no_unicode(request: Request, _error: Exception) -> ErrorResponse:
    """JSON can say half a pair of surrogates, which is text that no column of the database takes."""
    return await _mint_error(request, BadRequestError("has text that is no Unicode: a lone surrogate", field="body"))


async def _validation_error(_request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parts = [] if first["type"] == "json_invalid" else [str(part) for part in first["loc"] if part != "body"]
    field = shortened(".".join(parts), MAX_FIELD) or "body"
    detail = shortened(f"{field}: {first['msg']}")
    return ErrorResponse({"detail": detail, "type": "InvalidBodyError", "field": field}, 422)


async def _http_error(_request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, HTTPException)
    return ErrorResponse({"detail": error.detail}, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> ErrorResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ErrorResponse({"detail": "an error of the server; its log says more"}, 500)
