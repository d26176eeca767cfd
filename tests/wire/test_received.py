from __future__ import annotations

import numpy as np
import orjson
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.responses import JSONSettings, json_settings

ROW = np.arange(8, dtype=np.float32)
BODY = orjson.dumps(ROW.tolist())
LEFT = {"type": "http.disconnect"}

read = ArrayBody(np.float32, "n")


def part(body, *, more=False):
    return {"type": "http.request", "body": body, "more_body": more}


def request_of(*messages, kind=Request):
    """A request that has these messages to receive, and fails where more are asked for."""
    waiting = list(messages)

    async def receive():
        return waiting.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    return kind(scope, receive)


@pytest.fixture
def small_limit():
    token = json_settings.set(JSONSettings(body_limit_bytes=len(BODY) - 1))
    yield
    json_settings.reset(token)


@pytest.mark.parametrize(
    "messages",
    [
        [part(BODY)],
        [{"type": "http.request", "body": BODY}],
        [part(BODY[:5], more=True), part(BODY[5:])],
        [part(b"", more=True), part(BODY, more=True), {"type": "http.request"}],
        [{"type": "http.request", "more_body": True}, part(BODY[:7], more=True), part(BODY[7:])],
    ],
)
async def test_a_body_in_however_many_messages_is_read_once(messages):
    request = request_of(*messages)
    assert (await read(request)).tolist() == ROW.tolist()
    with pytest.raises(RuntimeError, match="Stream consumed"):
        await read(request)
    with pytest.raises(RuntimeError, match="Stream consumed"):
        await request.body()


@pytest.mark.usefixtures("small_limit")
async def test_a_body_that_is_refused_counts_as_read():
    request = request_of(part(BODY))
    with pytest.raises(BodyRefused):
        await read(request)
    with pytest.raises(RuntimeError, match="Stream consumed"):
        await request.body()


async def test_a_body_that_was_read_before_is_taken_from_the_request():
    request = request_of(part(BODY))
    assert await request.body() == BODY
    assert (await read(request)).tolist() == ROW.tolist()
    assert (await read(request)).tolist() == ROW.tolist()


async def test_of_a_body_that_was_begun_the_rest_is_read():
    request = request_of(part(b"[9,", more=True), part(b"[1,2]"))
    stream = request.stream()
    assert await anext(stream) == b"[9,"
    assert (await read(request)).tolist() == [1, 2]


@pytest.mark.parametrize("messages", [[LEFT], [part(BODY[:5], more=True), LEFT]])
async def test_a_client_that_leaves_before_the_end_of_its_body_is_told_of_as_starlette_does(messages):
    request = request_of(*messages)
    with pytest.raises(ClientDisconnect):
        await read(request)
    assert await request.is_disconnected()


@pytest.mark.parametrize(
    "messages",
    [[part(BODY)], [part(BODY, more=True)], [part(BODY[:5], more=True), part(BODY[5:], more=True)]],
)
@pytest.mark.usefixtures("small_limit")
async def test_a_body_is_refused_as_soon_as_it_turns_out_too_large(messages):
    with pytest.raises(BodyRefused) as refusal:
        await read(request_of(*messages))
    assert refusal.value.status_code == 413


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("length", [str(len(BODY)), "9" * 30])
async def test_a_body_that_says_that_it_is_too_large_is_not_even_asked_for(length):
    request = request_of()  # fails where it is asked for anything
    request.scope["headers"].append((b"content-length", length.encode()))
    with pytest.raises(BodyRefused):
        await read(request)


class Shifted(Request):
    async def stream(self):
        async for chunk in super().stream():
            yield chunk.replace(b"0.0", b"7.0")


class Slotted:
    """Nobody's request, which has what it takes."""

    __slots__ = ("receive", "scope")

    def __init__(self, scope, receive):
        self.scope, self.receive = scope, receive

    async def stream(self):
        yield BODY.replace(b"0.0", b"7.0")


@pytest.mark.parametrize("kind", [Shifted, Slotted])
async def test_a_kind_of_request_that_reads_its_body_its_own_way_is_asked_for_it(kind):
    assert (await read(request_of(part(BODY), kind=kind)))[0] == 7


async def test_a_request_whose_stream_was_replaced_is_asked_for_that():
    request = request_of()
    request.stream = Slotted(request.scope, None).stream
    assert (await read(request))[0] == 7


async def test_other_messages_are_passed_over():
    request = request_of({"type": "http.other", "body": b"[9,"}, part(BODY))
    assert (await read(request)).tolist() == ROW.tolist()


async def test_a_message_without_a_body_adds_nothing():
    request = request_of({"type": "http.request", "body": None, "more_body": True}, part(BODY))
    assert (await read(request)).tolist() == ROW.tolist()


@pytest.mark.parametrize("looks", [True, False])
def test_a_body_is_read_below_middleware_that_may_have_looked_at_it(looks):
    async def look(request, call_next):
        if looks:
            await request.body()
        return await call_next(request)

    async def total(request):
        return JSONResponse(float((await read(request)).sum()))

    app = Starlette(
        routes=[Route("/", total, methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=look)],
    )
    with TestClient(app) as client:
        assert client.post("/", content=BODY, headers={"content-type": "application/json"}).json() == 28
