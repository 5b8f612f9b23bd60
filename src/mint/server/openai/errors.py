"""Errors in OpenAI's shape, on these routes only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from typing_extensions import override

from mint.errors import SERVER_FAULT, BadRequestError, MintError
from mint.server import errors

logger = logging.getLogger(__name__)

CODES = {401: "invalid_api_key", 403: "permission_denied", 404: "model_not_found"}


class UnsupportedParameterError(BadRequestError):
    """A parameter of OpenAI's that this server does not honour."""

    code = "unsupported_parameter"


class UnknownParameterError(BadRequestError):
    """A parameter that the API does not have."""

    code = "unknown_parameter"


class ContextLengthError(BadRequestError):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class ClientGoneError(MintError):
    """Nobody reads the answer any more. The status is nginx's, for logs: no client sees it."""

    status = 499


class OpenAIRoute(APIRoute):
    """A route whose errors read `{"error": {"message", "type", "param", "code"}}`."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except MintError as error:
                refusal = error
            except RequestValidationError as error:
                refusal = _invalid(error)
            except HTTPException as error:
                refusal = MintError(str(error.detail))
                refusal.status = error.status_code
            except Exception as error:
                known = errors.meant(error)
                if known is None:
                    logger.exception("%s %s failed", request.method, request.url.path)
                refusal = known or MintError(SERVER_FAULT)
            return await errors.refusal(request, refusal, error_body(refusal))

        return answer


def error_body(error: MintError) -> dict[str, Any]:
    """The body of a response that carries this error."""
    return {
        "error": {
            "message": str(error),
            "type": "server_error" if error.status >= 500 else "invalid_request_error",
            "param": error.field,
            "code": getattr(error, "code", CODES.get(error.status)),
        }
    }


def _invalid(error: RequestValidationError) -> BadRequestError:
    first, path = errors.first_problem(error)
    field = path or None
    if first["type"] == "extra_forbidden":
        return UnknownParameterError("is no parameter of this API", field=field)
    return BadRequestError(first["msg"], field=field)
