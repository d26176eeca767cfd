"""One id for a request: the one that came with it, another package's, or one made when it is asked for."""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asgi_mlperf.hooks import current_exchange

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from starlette.types import Message

    from asgi_mlperf.hooks import Exchange

_VALID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
HEADER = b"x-request-id"


def current_request_id() -> str | None:
    """Return the id of the request that the running code serves, None outside of one.

    It is what asgi-correlation-id or structlog's context variables (``request_id``) have, if they are in
    use; else what the request brought as ``x-request-id``, if that is at most 128 harmless characters; else
    the trace id of its ``traceparent``; else a new one of 32 hexadecimal digits. The same all through a
    request and its background tasks.
    """
    exchange = current_exchange.get()
    return None if exchange is None else request_id_of(exchange)


def request_id_of(exchange: Exchange) -> str:
    """Return the id of a request."""
    return _of_asgi_correlation_id() or _of_structlog() or _own(exchange)


def add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add ``request_id`` to an event of structlog's: a processor."""
    found = current_request_id()
    if found is not None:
        event.setdefault("request_id", found)
    return event


def with_request_id(exchange: Exchange, start: Message) -> Message:
    """Return the start of a response with the request's id among its headers, unless somebody adds one."""
    headers = start.get("headers", ())
    if _of_asgi_correlation_id() or any(name.lower() == HEADER for name, _ in headers):
        return start
    found = request_id_of(exchange)
    if not _VALID.fullmatch(found):  # what an app binds may be anything
        return start
    return {**start, "headers": [*headers, (HEADER, found.encode())]}


@contextmanager
def in_log_records() -> Iterator[None]:
    """Give every log record inside this block a ``request_id``, ``-`` outside of requests.

    Log records are made in one place for the whole process; if something else has wrapped that place since,
    ours stays below it, and adds what it added.
    """
    found = logging.getLogRecordFactory()

    def make(*args: Any, **options: Any) -> logging.LogRecord:
        record = found(*args, **options)
        if not hasattr(record, "request_id"):
            record.request_id = current_request_id() or "-"
        return record

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        if logging.getLogRecordFactory() is make:
            logging.setLogRecordFactory(found)


def _own(exchange: Exchange) -> str:
    notes = exchange.noted()
    if not notes.request_id:
        notes.request_id = _brought(exchange) or os.urandom(16).hex()
    return notes.request_id


def _brought(exchange: Exchange) -> str | None:
    trace_id = None
    for name, value in exchange.scope.get("headers", ()):
        if name == HEADER:
            given = value.decode("latin-1")
            if _VALID.fullmatch(given):
                return str(given)
        elif name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value.decode("latin-1").strip())
            trace_id = found[1] if found else None
    return trace_id


def _of_asgi_correlation_id() -> str | None:
    """Return its id of this request, which it also returns to the client."""
    module: Any = sys.modules.get("asgi_correlation_id.context")
    found = None if module is None else module.correlation_id.get()
    return str(found) if found else None


def _of_structlog() -> str | None:
    """Return what the app has bound as ``request_id``."""
    module: Any = sys.modules.get("structlog.contextvars")
    found = None if module is None else module.get_contextvars().get("request_id")
    return str(found) if found else None
