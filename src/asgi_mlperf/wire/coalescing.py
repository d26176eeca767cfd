"""Each response in one write: ``uvicorn --http asgi_mlperf.wire.coalescing:CoalescingProtocol``."""

from __future__ import annotations

import logging
import weakref

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
except ImportError as error:
    raise ImportError(
        f"CoalescingProtocol is uvicorn's with httptools: pip install 'uvicorn[standard]' ({error})"
    ) from error

log = logging.getLogger("asgi_mlperf")

COALESCED_BYTES = 64 * 1024
"""Bodies above this are written after their head, not copied behind it."""


def can_hold(cycle: type) -> bool:
    """Whether uvicorn's class for a response, no public API, is as this takes it to be; else say so."""
    attributes, calls = (vars(cycle)[name].__code__.co_names for name in ("__init__", "send"))
    needed = {"chunked_encoding", "more_body", "response_started", "scope", "transport"}
    fits = needed.issubset(attributes) and "write" in calls and "writelines" not in calls
    if not fits:
        log.warning("CoalescingProtocol does not know this uvicorn: responses leave as they do without it")
    return fits


_holds = can_hold(RequestResponseCycle)


class CoalescingProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 on httptools, whose responses of a known length leave head and body in one write.

    uvicorn writes the head when the app starts the response, and the body when that comes: two system
    calls, two packets, and two reads of the client. Here the head of a response with a ``content-length``
    waits for the first of its body, as ASGI allows. What is sent is the same, byte for byte, also where the
    app fails in between; where the client shuts its side down in between, or the server is killed, it is
    nothing instead of a head without a body. Heads of streams (chunked), of answers to HEAD and of answers
    to requests that are not complete yet are not held: clients may wait for them. aiohttp writes small
    responses in the same way (its pull request 10991).
    """

    def on_headers_complete(self) -> None:
        """Let the app be called, as uvicorn does, with a response that waits for its body."""
        super().on_headers_complete()
        cycle = self.cycle
        if _holds and cycle is not None and cycle.transport is self.transport and not cycle.response_started:
            cycle.transport = _Coalesced(cycle)  # type: ignore[assignment] # as much of one as a cycle asks for


class _Coalesced:
    """The transport of one response: it holds the head until the body comes, then steps aside."""

    __slots__ = ("_cycle", "_head", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = weakref.ref(cycle)  # which has this: without a response nothing would break the circle
        self._transport = cycle.transport
        self._head = b""

    def write(self, data: bytes) -> None:
        cycle = self._cycle()
        if cycle is None or not cycle.response_started:  # "100 Continue"
            self._transport.write(data)
        elif (
            self._head
            or cycle.chunked_encoding is not False
            or cycle.more_body
            or cycle.scope["method"] == "HEAD"
        ):
            self._release(cycle, data)
        else:
            self._head = data

    def close(self) -> None:
        cycle = self._cycle()
        if cycle is not None and not self._transport.is_closing():
            self._release(cycle, b"")
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _release(self, cycle: RequestResponseCycle, data: bytes) -> None:
        if len(data) <= COALESCED_BYTES:
            data = b"".join((self._head, data))
        else:
            self._transport.write(self._head)
        cycle.transport = self._transport
        self._transport.write(data)
