from __future__ import annotations

import asyncio
import gc
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from example_app.demo.failure import DemoFailed
from example_app.demo.load import Measured, Workload, send

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from example_app.demo.load import Progress

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODIES = (b"a", b"b", b"c")


def load(
    handler: Handler, measured: Measured | None = None, progress: Progress = lambda _elapsed: None
) -> Measured:
    """Send the load to an app that knows one handler."""
    measured = Measured() if measured is None else measured

    async def serve_and_send() -> None:
        app = web.Application()
        app.router.add_post("/echo", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        workload = Workload("/echo", connections=3, bodies=BODIES, check=lambda _answers: None)
        try:
            await send(
                f"http://127.0.0.1:{runner.addresses[0][1]}",
                workload,
                measured,
                warm_up_s=0.05,
                seconds=0.3,
                progress=progress,
            )
        finally:
            await runner.cleanup()

    asyncio.run(serve_and_send())
    return measured


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


def test_every_answer_is_kept_with_the_request_it_belongs_to() -> None:
    measured = load(echo)
    assert measured.answers == {0: {b"a"}, 1: {b"b"}, 2: {b"c"}}
    assert measured.seconds >= 0.3
    assert 0 < max(measured.latencies_s) < measured.seconds


def test_one_deviating_answer_is_not_lost_among_the_others() -> None:
    numbers = count()

    async def deviate(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(body=b"?" if body == b"b" and next(numbers) % 2 else body)

    assert load(deviate).answers == {0: {b"a"}, 1: {b"b", b"?"}, 2: {b"c"}}


def test_a_second_turn_adds_to_the_first() -> None:
    measured = load(echo)
    requests = len(measured.latencies_s)
    load(echo, measured)
    assert measured.seconds >= 0.6
    assert len(measured.latencies_s) > requests
    assert measured.answers == {0: {b"a"}, 1: {b"b"}, 2: {b"c"}}


def test_connections_are_kept_alive_and_the_warm_up_does_not_count() -> None:
    requests: Counter[object] = Counter()

    async def counted(request: web.Request) -> web.Response:
        requests[request.transport] += 1
        return await echo(request)

    measured = load(counted)
    assert len(requests) == 3
    assert len(measured.latencies_s) < requests.total()


def test_progress_is_told_while_the_load_runs() -> None:
    told: list[float] = []
    load(echo, progress=told.append)
    assert told
    assert told == sorted(told)


def test_a_refusal_says_the_status_and_the_server_s_words() -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=503, text="queue full")

    with pytest.raises(DemoFailed, match="POST /echo answered 503: queue full"):
        load(refuse)


def test_a_connection_that_breaks_says_so() -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    with pytest.raises(DemoFailed, match="POST /echo failed") as failed:
        load(hang_up)
    assert "last log lines" in failed.value.remedy


def test_an_answer_that_does_not_come_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("example_app.demo.load._ANSWER_WITHIN_S", 0.1)

    async def hang(_request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    with pytest.raises(DemoFailed, match="no answer within"):
        load(hang)


def test_the_collector_runs_again_afterwards() -> None:
    load(echo)
    assert gc.isenabled()
