from __future__ import annotations

import asyncio
import math
import threading

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.support import call, http_scope, nothing_served

from asgi_mlperf import DeadlineExceeded, Plugin, Settings, time_left
from asgi_mlperf.hooks import Exchange
from asgi_mlperf.inference.deadlines import STANDARD, deadline_of

OWN = STANDARD | {b"x-own"}


async def nobody(*messages):
    return {"type": "http.disconnect"}


def exchange_with(*headers: tuple[bytes, bytes]) -> Exchange:
    scope = http_scope("/", headers=list(headers))
    return Exchange(scope, nobody, nobody, nothing_served(clock=lambda: 100.0))


@pytest.mark.parametrize(
    ("header", "value", "seconds"),
    [
        (b"x-own", b"250", 0.25),
        (b"x-envoy-expected-rq-timeout-ms", b"1500", 1.5),
        (b"grpc-timeout", b"2S", 2.0),
        (b"grpc-timeout", b"300m", 0.3),
        (b"grpc-timeout", b"1H", 3600.0),
        (b"grpc-timeout", b"500000u", 0.5),
        (b"x-own", b"soon", math.inf),
        (b"x-own", b"-5", math.inf),
        (b"x-own", b"9" * 400, math.inf),
        (b"x-own", "²".encode(), math.inf),
        (b"grpc-timeout", b"5x", math.inf),
        (b"grpc-timeout", b"", math.inf),
        (b"other", b"1", math.inf),
    ],
)
def test_headers_state_a_deadline(header, value, seconds):
    assert deadline_of(exchange_with((header, value)), OWN) == pytest.approx(100.0 + seconds)


def test_the_nearest_header_wins_and_an_ended_request_has_no_deadline():
    exchange = exchange_with((b"grpc-timeout", b"2S"), (b"x-own", b"500"))
    assert deadline_of(exchange, OWN) == pytest.approx(100.5)
    exchange.end()
    assert deadline_of(exchange, OWN) == math.inf
    assert deadline_of(None, OWN) == math.inf


async def test_a_requests_own_deadline_ends_its_call():
    plugin, gate = Plugin(Settings(pool={"threads": 1})), threading.Event()

    async def compute(request):
        await plugin.run(gate.wait, 30)
        return PlainTextResponse("late")

    app = Starlette(routes=[Route("/", compute)])
    plugin.install(app)
    async with plugin.lifespan(app):
        answer = await call(app, headers=[(b"x-request-timeout-ms", b"20")])
        gate.set()
    assert (answer.status, answer.body) == (504, b"deadline exceeded")


async def test_what_is_left_is_visible_to_the_function_and_handed_on():
    plugin = Plugin(Settings(pool={"threads": 2}))
    other = plugin.pool("other")

    def inner():
        return time_left()

    def outer():
        return time_left(), anyio.from_thread.run(other.run, inner)

    async with plugin.lifespan(Starlette()):
        assert time_left() == math.inf
        mine, handed_on = await plugin.run(outer, timeout=20)
        assert 0 < handed_on <= mine <= 20


async def test_a_batch_has_the_time_of_its_most_patient_item():
    plugin, seen = Plugin(Settings(pool={"threads": 1})), []

    @plugin.batched
    def predict(items):
        seen.append(time_left())
        return items

    async with plugin.lifespan(Starlette()):
        await asyncio.gather(predict(1, timeout=5), predict(2, timeout=50))
    assert 5 < seen[0] <= 50


async def test_a_batched_item_that_cannot_make_it_is_refused_at_the_door():
    from asgi_mlperf import Overloaded

    plugin, gate, started = Plugin(Settings(pool={"threads": 1})), threading.Event(), threading.Event()

    @plugin.batched(max_size=1)
    def predict(items):
        started.set()
        assert gate.wait(30)
        return items

    async with plugin.lifespan(Starlette()):
        first = asyncio.create_task(predict(1))
        await anyio.to_thread.run_sync(started.wait, 30)
        plugin._engine().pool().service(predict.__qualname__).observe(10.0)
        with pytest.raises(Overloaded, match="too long for the deadline"):
            await predict(2, timeout=5)
        gate.set()
        assert await first == 1


async def test_a_deadline_message_names_the_function_for_the_log_and_nothing_for_the_client():
    def secret_model():
        pytest.fail("called after its deadline")

    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        with pytest.raises(DeadlineExceeded, match="secret_model") as caught:
            await plugin.run(secret_model, timeout=0)
    assert caught.value.detail == "deadline exceeded"
