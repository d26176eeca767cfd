"""The load: connections that each send the next request as soon as they have their answer."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

import aiohttp

from example_app.demo.failure import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answers = dict[int, set[bytes]]
    Progress = Callable[[float], None]

_TICK_S = 0.1
_ANSWER_WITHIN_S = 15.0
_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True)
class Workload:
    """Requests to one endpoint, and the judge of the answers."""

    path: str
    connections: int
    bodies: tuple[bytes, ...]
    check: Callable[[Answers], None]
    """Raises ``DemoFailed`` at a wrong answer."""


@dataclass
class Measured:
    """What came back: how long each request took, and every distinct answer to each body."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    answers: Answers = field(default_factory=lambda: defaultdict(set))


async def send(
    base_url: str,
    workload: Workload,
    measured: Measured,
    *,
    warm_up_s: float,
    seconds: float,
    progress: Progress,
) -> None:
    """Keep the connections busy for ``seconds``, after a warm-up that does not count; add to ``measured``."""
    connector = aiohttp.TCPConnector(limit=workload.connections)
    timeout = aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(
        base_url, connector=connector, headers=_HEADERS, timeout=timeout
    ) as session:
        with _quiet_collector():
            await _send_for(warm_up_s, session, workload, Measured(), lambda _elapsed: None)
            await _send_for(seconds, session, workload, measured, progress)


async def _send_for(
    seconds: float, session: aiohttp.ClientSession, workload: Workload, measured: Measured, progress: Progress
) -> None:
    bodies = count(len(measured.latencies_s))
    started = perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(_tick(started, progress))
            senders = [
                group.create_task(_send_until(started + seconds, session, workload, bodies, measured))
                for _ in range(workload.connections)
            ]
            await asyncio.wait(senders)
            ticker.cancel()
    except* (aiohttp.ClientError, TimeoutError, DemoFailed) as failures:
        raise _explained(failures.exceptions[0], workload) from None
    measured.seconds += perf_counter() - started


async def _send_until(
    deadline: float,
    session: aiohttp.ClientSession,
    workload: Workload,
    bodies: Iterator[int],
    measured: Measured,
) -> None:
    sent = perf_counter()
    while sent < deadline:
        index = next(bodies) % len(workload.bodies)
        async with session.post(workload.path, data=workload.bodies[index]) as response:
            answer = await response.read()
        done = perf_counter()
        if response.status != 200:
            raise _refused(workload, response.status, answer)
        measured.latencies_s.append(done - sent)
        measured.answers[index].add(answer)
        sent = done


async def _tick(started: float, progress: Progress) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        progress(perf_counter() - started)


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Keep this process's own garbage collection out of the server's figures."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _refused(workload: Workload, status: int, answer: bytes) -> DemoFailed:
    return DemoFailed(
        f"POST {workload.path} answered {status}: {answer[:200].decode(errors='replace')}",
        "Serve the app yourself with `make serve` and send the request again to see the server's log; "
        "an ASGI_MLPERF_* variable set in this shell may also be the cause.",
    )


def _explained(failure: Exception, workload: Workload) -> Exception:
    if isinstance(failure, DemoFailed):
        return failure
    if isinstance(failure, TimeoutError):
        happened = f"POST {workload.path} gave no answer within {_ANSWER_WITHIN_S:.0f} s."
        return DemoFailed(
            happened, "Close other heavy programs and try again; the server may be starved of CPU."
        )
    happened = f"POST {workload.path} failed: {type(failure).__name__}: {failure}."
    return DemoFailed(happened, "The server closed the connection: its last log lines say why.")
