"""Every error the package raises, as one tree.

::

    ASGIMLPerfError
    ├── ConfigurationError (ValueError)     settings that cannot be used; stops the start
    ├── NotRunning (RuntimeError)           used outside the plugin's lifespan
    ├── BatchError (RuntimeError)           a batched function broke its contract
    ├── UnserializableError (TypeError)     a response holds a value JSON cannot say
    ├── Overloaded (HTTPException)          refused at the door: 503 with Retry-After
    ├── DeadlineExceeded (HTTPException)    the deadline passed first: 504
    ├── ClientLeft (HTTPException, OSError) nobody waits for the answer any more: 499
    └── BodyRefused (HTTPException)         a request body that cannot be an array: 413, 415 or 422
"""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException


class ASGIMLPerfError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(ASGIMLPerfError, ValueError):
    """Raised when settings cannot be used; names each variable and what it takes."""


class NotRunning(ASGIMLPerfError, RuntimeError):  # noqa: N818 - the public name, without the suffix
    """Raised by ``run`` and batched functions outside the plugin's lifespan."""


class BatchError(ASGIMLPerfError, RuntimeError):
    """Raised to every caller of a batch whose function did not return one result per item."""


class UnserializableError(ASGIMLPerfError, TypeError):
    """Raised when a response holds a value that JSON cannot say; names where it stands."""


class Overloaded(ASGIMLPerfError, HTTPException):  # noqa: N818 - the public name, without the suffix
    """Raised when work is refused because it cannot be done in time.

    An ``HTTPException``: left alone in a handler, it becomes a 503 response with ``Retry-After``.
    """

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        """Refuse, and tell the client to come back in ``retry_after_s`` whole seconds."""
        super().__init__(503, detail, headers={"Retry-After": str(retry_after_s)})
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ASGIMLPerfError, HTTPException):  # noqa: N818 - the public name, without the suffix
    """Raised when a deadline passes before the result is there.

    An ``HTTPException``: left alone in a handler, it becomes a 504 response.
    """

    def __init__(self, message: str) -> None:
        """Say what did not finish in time, in the log; the client is told no names."""
        super().__init__(504, "deadline exceeded")
        self._message = message

    def __str__(self) -> str:
        return self._message


class _Errors(list[dict[str, Any]]):
    """What FastAPI's handler of an ``HTTPException`` writes as JSON, and Starlette's encodes as a text."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return the JSON text of the response."""
        return json.dumps({"detail": self}).encode(encoding, errors)


class BodyRefused(ASGIMLPerfError, HTTPException):  # noqa: N818 - the public name, without the suffix
    """Raised when a request body is too large (413), of an unknown format (415), or not what was asked (422).

    An ``HTTPException``: left alone in a handler, it becomes a JSON response ``{"detail": [...]}`` whose
    entries (``errors``) have FastAPI's shape: ``type``, ``loc``, ``msg``.
    """

    def __init__(self, status_code: int, kind: str, message: str, loc: tuple[str | int, ...] = ()) -> None:
        """Say where in the body the trouble stands, and what is wanted instead."""
        self.errors = _Errors([{"type": kind, "loc": ("body", *loc), "msg": message}])
        detail: Any = self.errors
        super().__init__(status_code, detail, headers={"Content-Type": "application/json"})


class ClientLeft(ASGIMLPerfError, HTTPException, OSError):  # noqa: N818 - the public name, without the suffix
    """Raised when the client of the request left while its model call waited or ran.

    An ``HTTPException`` with status 499, which nobody reads; a handler need not catch it. In a response
    that has begun it is the ``OSError`` that ASGI servers raise when the client has left.
    """

    def __init__(self, message: str) -> None:
        """Say what was given up."""
        super().__init__(499, "client left")
        self._message = message

    def __str__(self) -> str:
        return self._message
