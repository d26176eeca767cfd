"""Each response in one write: ``uvicorn --http asgi_mlperf.wire.coalescing:CoalescingProtocol``."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
except ImportError as error:
    raise ImportError(
        f"CoalescingProtocol is uvicorn's with httptools: pip install 'uvicorn[standard]' ({error})"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Collection

log = logging.getLogger("asgi_mlperf")

COALESCED_BYTES = 64 * 1024
"""Bodies above this are written after their head, not copied behind it."""


def can_hold(names: Collection[str]) -> bool:
    """Whether cycles have these attributes, no public API of uvicorn's, that this looks at; else say so."""
    has_all = {"chunked_encoding", "response_started", "scope", "transport"}.issubset(names)
    if not has_all:
        log.warning("CoalescingProtocol does not know this uvicorn: responses leave as they do without it")
    return has_all


_holds = can_hold(RequestResponseCycle.__init__.__code__.co_names)


class CoalescingProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 on httptools, whose responses of a known length leave head and body in one write.

    uvicorn writes the head when the app starts the response, and the body when that comes: two system
    calls, two packets, and two reads of the client. Here the head of a response with a ``content-length``
    waits for the first of its body, which ASGI allows for every response. What is sent is the same, byte
    for byte; a response that the app gives up after its start is cut off after its head, as before. Heads of
    streams (chunked) and of answers to HEAD are not held. aiohttp writes small responses in the same way
    (its pull request 10991).
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
        elif self._head:
            self._release(cycle, data)
        elif cycle.chunked_encoding is False and cycle.scope["method"] != "HEAD":
            self._head = data
        else:
            self._release(cycle, data)

    def close(self) -> None:
        cycle = self._cycle()
        if cycle is not None and not self._transport.is_closing():
            self._release(cycle, b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _release(self, cycle: RequestResponseCycle, data: bytes) -> None:
        cycle.transport = self._transport
        if len(data) > COALESCED_BYTES:
            self._transport.write(self._head)
            self._transport.write(data)
        else:
            self._transport.write(self._head + data)
