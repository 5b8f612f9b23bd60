"""Everything MinT refuses, as types.

A refusal names the field, the datum and the limit, so that a user can mend the request without reading our
code. The HTTP status lives on the class; the one place that turns errors into responses is
`mint.server.errors`.
"""

from __future__ import annotations

MAX_TEXT, MAX_FIELD = 2000, 200
"""Characters of an error and of the field it names: both may quote what a client sent, however long that is."""


SERVER_FAULT = "an error of the server; its log says more"
"""What is told of an exception that nobody raised on purpose."""


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters: a longer text keeps its beginning and its end, which often says what is allowed."""
    kept = limit // 2 - 1
    return text if len(text) <= limit else f"{text[:kept]}…{text[-kept:]}"


class MintError(Exception):
    """Base of all errors that MinT raises on purpose.

    Attributes:
        status: HTTP status of a response that carries this error.
        category: the SDK's category of a failed future: "user" or "server".
        retry_after: seconds after which a client may ask again; None where asking again is of no use.
        field: path of the offending field in the request, such as `data[3].loss_fn_inputs.weights`.
            As the message, it is shortened if it is very long.
        datum: index of the offending datum in the request's `data`, where there is one.
    """

    status = 500
    category = "server"
    retry_after: float | None = None

    def __init__(self, message: str, *, field: str | None = None, datum: int | None = None) -> None:
        self.field = shortened(field, MAX_FIELD) if field else field
        super().__init__(shortened(f"{self.field}: {message}" if field else message))
        self.datum = datum

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross the process border between engine worker and server."""
        return _rebuild, (type(self), str(self), self.field, self.datum)


def _rebuild(kind: type[MintError], text: str, field: str | None, datum: int | None) -> MintError:
    error = kind(text)
    error.field, error.datum = field, datum
    return error


class BadRequestError(MintError):
    """The request can never succeed as it stands."""

    status = 400
    category = "user"


class InUseError(BadRequestError):
    """Something reads what the request would remove. Not 409, which the SDK sends again for five minutes."""


class AuthenticationError(MintError):
    """No key, or a key this server does not know.

    Attributes:
        challenge: the response's `WWW-Authenticate`.
    """

    status = 401
    category = "user"
    challenge = "Bearer"


class InvalidTokenError(AuthenticationError):
    """A token that has expired, or is none of this server's; its key gets a new one."""

    challenge = 'Bearer error="invalid_token"'


class PermissionDeniedError(MintError):
    """The object exists and belongs to someone else."""

    status = 403
    category = "user"


class LimitExceededError(MintError):
    """The key's limit on what its owner has is reached; waiting alone does not help."""

    status = 403
    category = "user"


class NotFoundError(MintError):
    """The named object does not exist."""

    status = 404
    category = "user"


class GoneError(MintError):
    """The object existed, or may have, and is no longer to be had."""

    status = 410
    category = "user"


class TooLargeError(MintError):
    """The body is larger than this server reads."""

    status = 413
    category = "user"


class OperationCancelledError(MintError):
    """Whoever asked for it does not want it any more, or has gone."""

    status = 410
    category = "user"


class BusyError(MintError):
    """More is waiting than this server lets wait; the same request may succeed in a moment.

    Args:
        limit: samples of one owner that may wait.
    """

    status = 429
    retry_after = 1.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} samples of yours wait for a place, and no more may: send this one again later")


class RateLimitError(MintError):
    """More than the key may ask for at a time; the same request may succeed after `retry_after` seconds."""

    status = 429

    def __init__(self, message: str, *, field: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, field=field)
        self.retry_after = retry_after


class UnavailableError(MintError):
    """The server cannot answer yet, or not any more; the same request may succeed later."""

    status = 503
    retry_after = 1.0


class ModelLoadError(MintError):
    """A base model cannot be found or cannot be served."""

    category = "user"
