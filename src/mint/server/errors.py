"""The one place where errors become responses."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mint.errors import MintError

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Answer every error with `{"detail": str, …}`, as the SDK and its command line read it."""
    app.add_exception_handler(MintError, _mint_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _mint_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MintError)
    body: dict[str, object] = {"detail": str(error), "type": type(error).__name__}
    if error.field is not None:
        body["field"] = error.field
    if error.datum is not None:
        body["datum"] = error.datum
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return JSONResponse(body, error.status, headers)


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parts = [] if first["type"] == "json_invalid" else [str(part) for part in first["loc"] if part != "body"]
    field = ".".join(parts) or "body"
    return JSONResponse({"detail": f"{field}: {first['msg']}", "type": "InvalidBodyError", "field": field}, 422)


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"detail": "an error of the server; its log says more"}, 500)
