import asyncio
import json
import mmap
import threading
import weakref

import numpy as np
import pytest
import torch
from starlette.background import BackgroundTask

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import (
    JSONSettings,
    ORJSONResponse,
    ORJSONStreamingResponse,
    encoding,
    exact,
    json_settings,
    pacing,
    sending,
    tensors,
)
from asgi_mlperf.wire.pacing import LIGHT, Pace
from asgi_mlperf.wire.weight import weigh

ARRAY = np.random.default_rng(0).random((40, 40), dtype="f4")
HEAVY = {
    "contiguous": ARRAY,
    "transposed": ARRAY.T,
    "strided": ARRAY[::3, ::2],
    "bfloat16": torch.from_numpy(ARRAY).bfloat16(),
    "one axis": ARRAY.ravel(),
    "one row": ARRAY.reshape(1, 1, -1),
    "masked": np.ma.masked_array(ARRAY, ARRAY > 0.5),
    "text": ARRAY.astype(str),
    "dates": (ARRAY * 1e9).astype("M8[ns]"),
    "records": np.rec.fromarrays([ARRAY.ravel()[:1000], ARRAY.ravel()[:1000]]).view(np.ndarray),
    "with nan": np.where(ARRAY > 0.5, np.nan, ARRAY),
    "lists": ARRAY.tolist(),
    "dicts": [{"a": i, "b": [i]} for i in range(300)],
    "one dict": {str(i): [i, str(i)] for i in range(300)},
    "keys": {i: np.float32(i) for i in range(300)},
    "swapped": ARRAY.astype(">f4"),
}


def send(response, scope=None):
    messages = []
    threads = set()

    async def collect(message):
        messages.append(message)
        threads.add(threading.get_ident())

    asyncio.run(response(scope or {"type": "http", "asgi": {"spec_version": "2.4"}}, None, collect))
    return messages


def with_settings(**settings):
    return json_settings.set(JSONSettings(**settings))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(tensors, "PIECE", 256)
    monkeypatch.setattr(exact, "_RUN", 64)
    monkeypatch.setattr(exact, "_QUICK_BYTES", 2048)
    monkeypatch.setattr(encoding, "_PIECE_BYTES", 2048)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("settings", [{}, {"nan": "string"}, {"float_digits": 4}], ids=str)
def test_a_heavy_body_is_the_same_body_in_pieces(name, settings):
    light = with_settings(offload_bytes=10**9, **settings)
    whole = json.loads(bytes(ORJSONResponse({"y": HEAVY[name]}).body))
    json_settings.reset(light)
    token = with_settings(offload_bytes=0, **settings)
    start, *body = send(ORJSONResponse({"y": HEAVY[name]}))
    json_settings.reset(token)
    text = b"".join(message["body"] for message in body)
    assert json.loads(text) == whole
    assert dict(start["headers"])[b"content-length"] == str(len(text)).encode()
    assert [message["more_body"] for message in body] == [True] * (len(body) - 1) + [False]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", HEAVY)
def test_no_piece_is_so_large_that_making_it_takes_long(name):
    sizes = [len(piece) for piece in encoding.pieces({"y": HEAVY[name]}, JSONSettings())]
    assert len(sizes) > 1
    assert max(sizes) < 12_000


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", HEAVY)
def test_a_streamed_body_is_the_same_body_without_a_length(name):
    start, *body = send(ORJSONStreamingResponse({"y": HEAVY[name]}, 203, {"x-a": "b"}))
    text = b"".join(message["body"] for message in body)
    assert json.loads(text) == json.loads(encoding.dumps({"y": HEAVY[name]}, JSONSettings()))
    assert (start["status"], dict(start["headers"])) == (
        203, {b"x-a": b"b", b"content-type": b"application/json"},
    )  # fmt: skip


def test_light_bodies_are_made_at_once_and_heavy_ones_when_they_are_sent():
    assert ORJSONResponse([1]).body == b"[1]"
    heavy = ORJSONResponse(np.zeros(10**6))
    assert not hasattr(heavy, "body")
    assert b"content-length" not in dict(heavy.raw_headers)


def test_heavy_bodies_are_made_in_another_thread(monkeypatch):
    makers = []
    monkeypatch.setattr(Pace, "breathe", lambda _pace: makers.append(threading.get_ident()))
    send(ORJSONResponse(np.zeros(10**6)))
    assert makers
    assert threading.get_ident() not in makers


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 300, 301, 1500, 1501])
def test_pieces_are_packed_into_blocks_that_grow_and_hold_the_same(monkeypatch, size):
    monkeypatch.setattr(sending, "_LEAST_BLOCK_BYTES", 100)
    monkeypatch.setattr(sending, "_MOST_BLOCK_BYTES", 400)
    text = bytes(at % 251 for at in range(size))
    for step in (1, 7, 100, 1000):
        packed = sending.pack((text[at : at + step] for at in range(0, size, step)), LIGHT)
        assert b"".join(packed) == text
        assert [len(block) for block in packed][:-1] == [100, 200, 400, 400, 400][: len(packed) - 1]


def test_blocks_are_given_back_before_background_tasks(monkeypatch):
    blocks, alive = [], []
    made = mmap.mmap

    def counted(*arguments, **options):
        block = made(*arguments, **options)
        blocks.append(weakref.ref(block))
        return block

    monkeypatch.setattr(mmap, "mmap", counted)
    task = BackgroundTask(lambda: alive.extend(block() is not None for block in blocks))
    send(ORJSONResponse(np.zeros(10**6), background=task))
    assert alive == [False] * len(blocks)
    assert blocks


def test_a_heavy_body_that_cannot_be_said_is_refused_before_anything_is_sent():
    response = ORJSONResponse([np.zeros(10**6), 1j])
    with pytest.raises(UnserializableError, match=r"^\$\[1\]: complex"):
        send(response)


@pytest.mark.parametrize(
    "settings", [{}, {"nan": "error"}, {"offload_bytes": 100_000}, {"offload_bytes": 10**9}], ids=str
)
def test_a_body_that_looks_light_and_is_not_is_found_out(settings):
    content = [1] * 1000 + [np.zeros(10**6)] + [2] * 2000
    token = with_settings(**settings)
    response = ORJSONResponse(content)
    body = b"".join(message["body"] for message in send(response)[1:])
    json_settings.reset(token)
    assert weigh(content) < 100_000
    assert hasattr(response, "body") == (settings.get("offload_bytes", 0) == 10**9)
    assert json.loads(body) == [*content[:1000], [0] * 10**6, *content[1001:]]


def test_background_tasks_run_after_a_heavy_body():
    ran = []
    send(ORJSONResponse(np.zeros(10**6), background=BackgroundTask(ran.append, 1)))
    assert ran == [1]


def test_a_websocket_may_be_denied_with_a_heavy_body():
    messages = send(ORJSONResponse(np.zeros(10**6), 403), {"type": "websocket"})
    assert {message["type"] for message in messages} == {
        "websocket.http.response.start", "websocket.http.response.body",
    }  # fmt: skip


def test_the_event_loop_goes_on_while_a_heavy_body_is_made(monkeypatch):
    monkeypatch.setattr(pacing, "BUDGET_S", 0)  # it turns once for each of some sixty pieces
    monkeypatch.setattr(pacing, "_LONGEST_WAIT_S", 10)
    ticks = 0

    async def main():
        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        async def nothing(_message):
            return None

        ticking = asyncio.create_task(tick())
        await ORJSONResponse(np.zeros(10**6))({"type": "http"}, None, nothing)
        ticking.cancel()

    asyncio.run(main())
    assert ticks > 50


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ({"label": "cat", "score": 0.5}, 10, 50),
        ({"meta": {"a": [{"y": np.zeros(10**6)}]}}, 10**6, 10**8),
        ([[0.5] * 1000] * 1000, 10**6, 10**8),
        ([], 0, 0),
        (torch.eye(3).to_sparse(), 0, 100),
        ("x" * 10**6, 10**6, 10**6),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_of_the_right_order(value, least, most):
    assert least <= weigh(value) <= most
