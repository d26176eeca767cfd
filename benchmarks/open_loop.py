"""An open-loop HTTP/1.1 client: Poisson arrivals whatever becomes of the answers, clients that give up."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

GAVE_UP = 0
BROKEN = -1


@dataclass(slots=True, eq=False)
class Request:
    """One client: due at, sent at and over at seconds of ``time.perf_counter``."""

    number: int
    due: float
    sent: float = 0.0
    over: float = 0.0
    status: int = GAVE_UP
    connection: Connection | None = None

    @property
    def seconds(self) -> float:
        """From when it was due, so that a late generator is not to the server's advantage."""
        return self.over - self.due


class Connection(asyncio.Protocol):
    """One connection, used again as long as the server keeps it."""

    def __init__(self, clients: Clients, request: Request) -> None:
        self._clients = clients
        self._request: Request | None = request
        self._received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are of no common class
        if self._request is None:
            self.transport.abort()  # given up while it was being made
        else:
            self.send(self._request)

    def send(self, request: Request) -> None:
        self._request = request
        assert self.transport is not None
        self.transport.write(self._clients.message(request.number))

    def give_up(self) -> None:
        self._request = None
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        head, found, body = received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            self._received = received
            return
        self._received = b""
        request, self._request = self._request, None
        reusable = self._clients.keep_alive and b"connection: close" not in head.lower()
        if reusable:
            self._clients.idle.append(self)
        else:
            assert self.transport is not None
            self.transport.close()
        if request is not None:
            self._clients.end(request, int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        if self in self._clients.idle:
            self._clients.idle.remove(self)
        request, self._request = self._request, None
        if request is not None:
            self._clients.end(request, BROKEN)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    return 0


@dataclass
class Clients:
    """Many clients of one server, each with the same patience; one that gives up closes its connection."""

    port: int
    message: Callable[[int], bytes]
    patience_s: float
    keep_alive: bool = True
    on_end: Callable[[Request], None] | None = None
    idle: list[Connection] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _waiting: dict[Request, asyncio.TimerHandle] = field(default_factory=dict)
    _connecting: set[asyncio.Task[object]] = field(default_factory=set)

    def begin(self, due: float) -> None:
        """Send a request that was due then."""
        loop = asyncio.get_running_loop()
        request = Request(len(self.requests), due, sent=time.perf_counter())
        self.requests.append(request)
        self._waiting[request] = loop.call_later(
            max(0.0, due + self.patience_s - request.sent), self._give_up, request
        )
        if self.idle:
            request.connection = self.idle.pop()
            request.connection.send(request)
        else:
            connection = request.connection = Connection(self, request)
            connecting = loop.create_task(self._connect(connection))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    def end(self, request: Request, status: int) -> None:
        """Note what became of a request."""
        self._waiting.pop(request).cancel()
        request.over, request.status, request.connection = time.perf_counter(), status, None
        if self.on_end is not None:
            self.on_end(request)

    def close(self) -> None:
        """Give up whatever still waits."""
        for request in list(self._waiting):
            self._give_up(request)
        for connection in list(self.idle):
            connection.give_up()
        for connecting in self._connecting:
            connecting.cancel()

    def _give_up(self, request: Request) -> None:
        connection = request.connection
        self.end(request, GAVE_UP)
        if connection is not None:
            connection.give_up()

    async def _connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, "127.0.0.1", self.port)
        except OSError:
            connection.connection_lost(None)


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due."""
    chance, at = random.Random(seed), 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        yield at


def steady(rate: float, seconds: float) -> Iterator[float]:
    """As many requests, evenly spread."""
    return (number / rate for number in range(int(rate * seconds)))


async def offer(clients: Clients, arrivals: Iterator[float]) -> None:
    """Send a request at each arrival."""
    start = time.perf_counter()
    for at in arrivals:
        wait = start + at - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        clients.begin(start + at)


async def saturate(clients: Clients, concurrency: int, seconds: float) -> float:
    """Keep so many requests under way; return the answers per second."""
    start = time.perf_counter()
    clients.on_end = lambda _: clients.begin(time.perf_counter())
    for _ in range(concurrency):
        clients.begin(start)
    await asyncio.sleep(seconds)
    clients.on_end = None
    answered = sum(request.status == 200 for request in clients.requests)
    return answered / (time.perf_counter() - start)


def without_collections() -> None:
    """Keep the generator's own garbage collector out of the way."""
    gc.collect()
    gc.freeze()
    gc.disable()
