"""Heavy bodies are read piece by piece: the same arrays, the same complaints, never much in one call."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.wire import formats, json_arrays, json_tables, pacing, received
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.received import Received
from asgi_mlperf.wire.tables import TableBody

PIECE = 64
ROWS = [[1.5, -2e3, 3], [0.25, 0, 1e-7], [7, 8, 9]] * 20
NESTED = [[[1, 2], [3, 4], [5, 6]]] * 30
TABLE: dict[str, list[Any]] = {
    "id": list(range(60)),
    "ignored": [{"a": [1, {"b": 2}]}] * 3,
    "score": [0.5] * 60,
    "city": ['a],"b', "},{", "ü\\"] * 20,
}
RECORDS = [
    {"id": i, "city": TABLE["city"][i], "score": 0.5, "ignored": {"a": [i, {"b": "},{"}]}} for i in range(60)
]
COLUMNS = TableBody({"id": np.int32, "city": str, "score": np.float32})


@pytest.fixture
def pieces(monkeypatch):
    """The lengths of the texts that were given to orjson in one call."""
    lengths = []

    def loads(text):
        lengths.append(len(text))
        return orjson.loads(text)

    spy = SimpleNamespace(loads=loads, JSONDecodeError=orjson.JSONDecodeError)
    for module in (json_arrays, json_tables):
        monkeypatch.setattr(module, "orjson", spy)
    for module in (received, json_arrays, json_tables):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    return lengths


def read(parser, data, *, is_heavy=True, chunk=50, kind=formats.JSON):
    chunks = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    try:
        return parser._read(Received(chunks, is_heavy=is_heavy), kind, {})
    except BodyRefused as refusal:
        return refusal.status_code, refusal.errors


def lists(table):
    return {name: column.tolist() for name, column in table.items()}


@pytest.mark.parametrize("chunk", [7, 50, 10**6])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("f4", ROWS),
        ("f8", list(range(60))),
        ("f4", [list(range(60))]),
        ("i8", NESTED),
        ("u2", NESTED),
        ("f2", NESTED),
        ("?", [[True, False]] * 40),
        ("u8", [2**64 - 1, 0, 1.0] * 40),
        ("f4", [[[[1]]]] * 60),
    ],
    ids=str,
)
def test_arrays_are_read_in_pieces_as_they_are_in_one(pieces, dtype, value, indent, chunk):
    array = read(ArrayBody(dtype), json.dumps(value, indent=indent).encode(), chunk=chunk)
    assert array.dtype == dtype
    assert np.array_equal(array, np.array(value, dtype="O").astype(dtype))
    assert len(pieces) > 2
    assert max(pieces) < 3 * PIECE


def test_null_is_nan_in_pieces_too(pieces):
    array = read(ArrayBody("f4", finite=False), b"[" + b"1,null," * 40 + b"1]")
    assert np.isnan(array[1:-1:2]).all()
    assert len(pieces) > 2


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        ("f4", "n 2", b"[[1,2],[3]]"),
        ("f4", "n 2", b"[[1,2],3]"),
        ("f4", "n 2", b"[[1,2],[3,4,5]]"),
        ("f4", "...", b"[[[1],[2]],[[3],4]]"),
        ("f4", "...", b"[[[1],[2]],[[3]]]"),
        ("f4", "n 2", b"[[1,2,3]]"),
        ("f4", "n n", b"[[1,2,3]]"),
        ("f4", "n", b"[[1]]"),
        ("f4", "n", b"3"),
        ("f4", "n", b'{"a":1}'),
        ("f4", "n", b'"text"'),
        ("f4", "n", b"[1,[2]]"),
        ("f4", "n 2", b'[[1,2],[3,"4"]]'),
        ("f4", "n", b"[1,null]"),
        ("f4", "n", b"[1,true]"),
        ("?", "n", b"[true,1]"),
        ("i4", "n", b"[1,1.5]"),
        ("i1", "n 2", b"[[1,2],[300,4]]"),
        ("f2", "n 1", b"[[1],[70000]]"),
        ("f4", "n", b"[1,"),
        ("f4", "n", b"[1,2"),
        ("f4", "n", b"[1,2]]"),
        ("f4", "n", b"[1,2],[3]"),
        ("f4", "n", b"1,2"),
        ("f4", "n", b"[1,2] x"),
        ("f4", "n", b"[1,,2]"),
        ("f4", "n", b"[,1]"),
        ("f4", "n", b"[ ,1]"),
        ("f4", "n 1", b"[,[1]]"),
        ("f4", "n 1", b"[[,1]]"),
        ("f4", "n 1", b"[[1],[,1]]"),
        ("f4", "n", b"[01,2]"),
        ("f4", "n", b"[1,+2]"),
        ("f4", "n", b"[1,2,]"),
        ("f4", "n", b"[1,2, ]"),
        ("f4", "n 1", b"[[1],[2],]"),
        ("f4", "n 1", b"[[1],[2,]]"),
        ("f4", "n", b""),
        ("f8", "n", b"[1,1e400]"),
        ("f8", "...", b"[" * 40 + b"]" * 40),
        ("f4", "n 256", b"[[],[]]"),
        ("f4", "n 2", b"[[],[]]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("piece_bytes", [1, 4, 64])
def test_what_is_not_the_array_is_refused_in_pieces_as_it_is_in_one(
    pieces, monkeypatch, dtype, shape, text, piece_bytes
):
    parser = ArrayBody(dtype, shape)
    whole = read(parser, text, is_heavy=False)
    for module in (received, json_arrays):
        monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    made = read(parser, text)
    if isinstance(whole, tuple):
        assert made[0] == 422
        [found], [expected] = made[1], whole[1]
        assert found["type"] == expected["type"]
        assert found["loc"] == expected["loc"] or found["type"] == "json_invalid"
    else:
        assert np.array_equal(whole, made)


@pytest.mark.parametrize("end", [b",[1,2,x]]", b',"text"]', b",[1,2]]", b"", b',{"a":[', b",[" * 40])
def test_not_even_an_error_is_looked_for_in_much_at_once(pieces, end):
    text = json.dumps(ROWS).encode()
    assert read(ArrayBody("f4", "n 3"), text[:-1] + end)[0] == 422
    assert max(pieces) < 3 * PIECE


@pytest.mark.parametrize("chunk", [7, 50, 10**6])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("content", [TABLE, RECORDS], ids=["columns", "records"])
def test_tables_are_read_in_pieces_as_they_are_in_one(pieces, content, indent, chunk):
    text = json.dumps(content, indent=indent, ensure_ascii=False).encode()
    table = read(COLUMNS, text, chunk=chunk)
    assert lists(table) == {name: TABLE[name] for name in ("id", "city", "score")}
    assert [column.dtype for column in table.values()] == ["i4", "O", "f4"]
    assert len(pieces) > 5
    assert max(pieces) < 12 * PIECE


@pytest.mark.parametrize(
    "text",
    [
        b'{"id":[1,2],"city":["a","b"],"score":[1]}',
        b'{"id":[1,2],"city":["a","b"]}',
        b'{"id":[1,2],"city":["a",1],"score":[1,2]}',
        b'{"id":[1,"2"],"city":["a","b"],"score":[1,2]}',
        b'{"id":1,"city":["a","b"],"score":[1,2]}',
        b'{"id":[1,2],"id":[3],"city":["a"],"score":[1]}',
        b'{"id":[1,2],"city":["a"],"score":[1],"id":[3]}',
        b'{"id":[1,"2"],"city":["a"],"score":[1],"id":[3]}',
        b'{"id":["1"],"city":[2],"score":[1],"id":[3],"city":["a"]}',
        b'{"id":[1],"city":["a"],"score":[1],"id":["x"]}',
        b'{"id":["x"],"city":["a"],"score":[1]',
        b'{"id":[1,2],"city":["a"],"score":[1,2],"city":["b","c"]}',
        b'{"id":[1,2],"city":["a","b"],"score":[1,2]',
        b'{"id":[1,2],"city":["a","b"],"score":[1,2]},',
        b'{"id":[1,2],"city":["a","b],"score":[1,2]}',
        b'[{"id":1,"city":"a","score":1},{"id":1,"city":"a"}]',
        b'[{"id":1,"city":"a","score":1},{"id":1,"city":2,"score":1}]',
        b'[{"id":1,"city":"a","score":1},{"id":9999999999,"city":"a","score":1}]',
        b'[{"id":1,"city":"a","score":1},5,6]',
        b'[{"id":1,"city":"a","score":1},{"id":1]',
        b'{"id":[1,],"city":["a"],"score":[1]}',
        b'{"id":[,1],"city":["a"],"score":[1]}',
        b'{,"id":[1],"city":["a"],"score":[1]}',
        b'{"id":,"city":["a"],"score":[1]}',
        b'[,{"id":1,"city":"a","score":1}]',
        b'{"id":[1],"city":["a",,"b"],"score":[1]}',
        b'{"id":[1],"city":["a"],"score":[1],}',
        b'{"id":[1],,"city":["a"],"score":[1]}',
        b'[{"id":1,"city":"a","score":1},]',
        b'[{"id":1,"city":"a","score":1},,{"id":1,"city":"a","score":1}]',
        b"[1]",
        b"[]",
        b"5",
        b"",
        b"{}",
    ],
    ids=str,
)
@pytest.mark.parametrize("piece_bytes", [1, 8, 64])
def test_what_is_not_the_table_is_refused_in_pieces_as_it_is_in_one(pieces, monkeypatch, text, piece_bytes):
    whole = read(COLUMNS, text, is_heavy=False)
    for module in (received, json_tables):
        monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    made = read(COLUMNS, text)
    if isinstance(whole, tuple):
        assert made[0] == 422
        assert whole[1][0]["type"] in {made[1][0]["type"], "json_invalid"}
    else:
        assert lists(made) == lists(whole)


@pytest.mark.parametrize("kind", [formats.NPY, formats.RAW, formats.SAFETENSORS])
def test_heavy_binary_bodies_are_put_together_piece_by_piece(pieces, monkeypatch, kind):
    array = np.arange(600, dtype="f4").reshape(200, 3)
    body, _ = formats.encode(array, kind, "x")
    parts = []
    taken = Received.pieces

    def counted(body):
        for piece in taken(body):
            parts.append(len(piece))
            yield piece

    monkeypatch.setattr(Received, "pieces", counted)
    assert np.array_equal(read(ArrayBody("f4", "n 3"), b"".join(body), chunk=1000, kind=kind), array)
    assert max(parts) <= PIECE


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pacing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


async def test_work_waits_for_a_turn_of_the_event_loop_when_the_budget_is_spent(now):
    loop, pace, events = asyncio.get_running_loop(), pacing.Pace(), []

    def work():
        for _ in range(3):
            now[0] += pacing.BUDGET_S
            loop.call_soon_threadsafe(events.append, "loop")
            pace.breathe()
            events.append("work")

    await asyncio.to_thread(work)
    assert events == ["loop", "work"] * 3


async def test_work_within_its_budget_and_light_work_wait_for_nobody(now):
    pacing.Pace().breathe()
    now[0] += pacing.BUDGET_S
    pacing.LIGHT.breathe()
    pacing.Pace().breathe()


async def test_work_does_not_wait_for_ever_for_a_loop_that_hangs(now, monkeypatch):
    monkeypatch.setattr(pacing, "_LONGEST_WAIT_S", 0.001)
    pace = pacing.Pace()
    now[0] += pacing.BUDGET_S
    pace.breathe()  # on the event loop, which therefore cannot turn


def test_work_goes_on_without_an_event_loop(monkeypatch):
    now, slept = [0.0], []
    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=slept.append)
    monkeypatch.setattr(pacing, "time", clock)
    without = pacing.Pace()

    async def made():
        return pacing.Pace()

    closed = asyncio.run(made())
    now[0] += pacing.BUDGET_S
    for pace in (without, closed):
        pace.breathe()
    assert len(slept) == 1  # such as on trio; a loop that was closed needs no turn


def test_a_heavy_table_of_commas_that_end_nothing_is_refused_soon():
    status, _ = read(COLUMNS, b'{"id":' + b"[," * 4_000_000, chunk=2**20)
    assert status == 422


def test_ignored_columns_may_be_as_deep_in_a_heavy_table_as_in_a_light_one():
    deep = b"[" * 900 + b"]" * 900
    data = b'{"deep":' + deep + b',"id":[' + b"1," * 100_000 + b'1],"city":["a"' + b',"a"' * 100_000
    data += b'],"score":[0' + b",0" * 100_000 + b"]}"
    heavy, light = read(COLUMNS, data, chunk=2**20), read(COLUMNS, data, is_heavy=False)
    assert lists(heavy) == lists(light)
