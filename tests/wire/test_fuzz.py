"""Every parser against whatever strangers may send: an array of what was declared, or a clean refusal.

``FUZZ_EXAMPLES`` and ``FUZZ_MUTATIONS`` set how many inputs are tried, ``FUZZ_SEED`` which ones.
"""

import io
import json
import os
import random

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.wire import formats, json_arrays, json_numbers, json_tables, received
from asgi_mlperf.wire.bodies import ArrayBody, media_type
from asgi_mlperf.wire.negotiation import negotiate
from asgi_mlperf.wire.received import Received
from asgi_mlperf.wire.tables import TableBody

pa = pytest.importorskip("pyarrow")
safetensors = pytest.importorskip("safetensors.numpy")

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
KINDS = [formats.JSON, formats.NPY, formats.RAW, formats.SAFETENSORS, formats.ARROW]
DTYPES = st.sampled_from(["?", "i1", "i8", "u1", "u4", "u8", "f2", "f4", "f8"])
SHAPES = st.sampled_from(["...", "n", "n 2", "2 2", "n n", "... 2", ""])


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def arrow(array):
    batch = pa.record_batch({"x": pa.array(array.ravel())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


ARRAY = np.arange(4, dtype="f4").reshape(2, 2)
SEEDS = {
    formats.JSON: [
        b"[[0,1],[2,3]]",
        b'{"a":[1,2],"b":["x","y"]}',
        b'[{"a":1,"b":"x"}]',
        b"[[1e400]]",
        b"[null]",
    ],
    formats.NPY: [npy(ARRAY), npy(ARRAY.T), npy(ARRAY.astype(">i8"))],
    formats.RAW: [ARRAY.tobytes()],
    formats.SAFETENSORS: [safetensors.save({"x": ARRAY}), safetensors.save({"a": ARRAY[0]})],
    formats.ARROW: [arrow(ARRAY), arrow(ARRAY.astype("i8"))],
}


TOKENS = [
    b"\xff" * 8,
    b"\x00" * 8,
    b"9" * 20,
    b"[",
    b"]",
    b",",
    b"-",
    b"1e999",
    b"null",
    b'"',
    b"\x01",
    b"\x7f",
]


@st.composite
def mutated(draw, seeds):
    """A valid body with a few bytes replaced, cut, repeated or inserted."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 2, 4, 8])))
        new = draw(
            st.binary(max_size=9)
            | st.sampled_from(
                [b"\xff" * 8, b"\x00" * 8, b"9" * 20, b"[", b"]", b",", b"-", b"1e999", b"null", b'"']
            )
        )
        data[at:end] = new
    return data


def read(parser, data, kind, headers=None, *, is_heavy=False):
    """What the parser makes of a body, or its refusal."""
    told = {name.encode(): value.encode("latin-1", "replace") for name, value in (headers or {}).items()}
    try:
        headers = {b"content-type": kind.encode(), **told}
        return parser._read(Received([bytes(data)], is_heavy=is_heavy), media_type(headers), headers)
    except BodyRefused as refusal:
        return refusal


def check_array(parser, data, kind, headers):
    array = read(parser, data, kind, headers)
    if isinstance(array, BodyRefused):
        assert array.status_code in {415, 422}
        assert array.errors[0]["loc"][0] == "body"
        assert json.loads(array.detail.encode())
        return
    assert array.dtype == parser.dtype
    assert parser.shape.fits(array.shape)
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.flags.writeable
    assert array.dtype.kind != "f" or not parser.finite or np.isfinite(array).all()


def test_mutations_are_what_was_declared_or_are_refused():
    chance = random.Random(os.environ.get("FUZZ_SEED", "0"))
    parsers = [
        ArrayBody(dtype, shape, finite=finite)
        for dtype in ("?", "i1", "u8", "f2", "f4", "f8")
        for shape in ("...", "n 2", "n")
        for finite in (True, False)
    ]
    for _ in range(int(os.environ.get("FUZZ_MUTATIONS", "3000"))):
        kind = chance.choice(KINDS)
        data = bytearray(chance.choice(SEEDS[kind]))
        for _ in range(chance.randint(0, 4)):
            at = chance.randint(0, len(data))
            new = chance.choice(TOKENS) if chance.random() < 0.5 else chance.randbytes(chance.randint(0, 8))
            data[at : at + chance.choice((0, 1, 2, 4, 8))] = new
        check_array(chance.choice(parsers), data, kind, {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_body_is_what_was_declared_or_is_refused(kind):
    @fuzz
    @given(mutated(SEEDS[kind]) | st.binary(max_size=64).map(bytearray), DTYPES, SHAPES, st.booleans())
    def run(data, dtype, shape, finite):
        check_array(ArrayBody(dtype, shape, finite=finite), data, kind, {})

    run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.sampled_from("abx"), children, max_size=3)
    ),
    max_leaves=12,
)


@fuzz
@given(JSON, DTYPES, SHAPES, st.booleans())
def test_every_json_value_is_what_was_declared_or_is_refused(value, dtype, shape, finite):
    data = bytearray(json.dumps(value), "ascii")
    check_array(ArrayBody(dtype, shape, finite=finite), data, formats.JSON, {})


@fuzz
@given(mutated(SEEDS[formats.JSON][1:3]) | JSON.map(lambda value: bytearray(json.dumps(value), "ascii")))
def test_json_tables_read_in_pieces_are_read_as_in_one(data):
    parser = TableBody({"a": np.int64, "b": str})
    whole = read(parser, data, formats.JSON)
    pieces = read_in_pieces(parser, data)
    if isinstance(whole, BodyRefused):
        assert pieces.status_code == whole.status_code
    else:
        assert {name: column.tolist() for name, column in pieces.items()} == {
            name: column.tolist() for name, column in whole.items()
        }


NUMBERS = st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.integers(1, 3).flatmap(
    lambda n: st.lists(NUMBERS, min_size=n, max_size=n).map(lambda row: row * 16)
)
LISTS = st.recursive(ROWS, lambda children: st.lists(children, min_size=1, max_size=3), max_leaves=4)


@fuzz
@given(
    mutated(SEEDS[formats.JSON]) | (LISTS | JSON).map(lambda value: bytearray(json.dumps(value), "ascii")),
    DTYPES,
    SHAPES,
)
def test_json_is_read_the_same_whichever_reader_it_is_for(data, dtype, shape):
    parser = ArrayBody(dtype, shape)
    as_a_short_list = read(parser, data, formats.JSON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "short_list", lambda *_: None)
        with_simdjson = read(parser, data, formats.JSON)
        patch.setattr(json_numbers, "_parser", lambda: None)
        without = read(parser, data, formats.JSON)
    for found in (as_a_short_list, with_simdjson):
        if isinstance(without, BodyRefused):
            assert found.errors == without.errors
        else:
            assert np.array_equal(found, without)
            assert found.dtype == without.dtype


def read_in_pieces(parser, data, piece_bytes=2):
    with pytest.MonkeyPatch.context() as patch:
        for module in (received, json_arrays, json_tables):
            patch.setattr(module, "PIECE_BYTES", piece_bytes)
        return read(parser, data, formats.JSON, is_heavy=True)


@fuzz
@given(mutated(SEEDS[formats.JSON]) | JSON.map(lambda value: bytearray(json.dumps(value), "ascii")), SHAPES)
def test_json_read_in_pieces_is_read_as_in_one(data, shape):
    parser = ArrayBody("f4", shape)
    whole = read(parser, data, formats.JSON, {})
    pieces = read_in_pieces(parser, data)
    if isinstance(whole, BodyRefused):
        assert pieces.status_code == whole.status_code
    else:
        assert np.array_equal(whole, pieces)


@fuzz
@given(st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=20), DTYPES)
def test_json_numbers_are_read_as_numpy_reads_them_or_refused(rows, dtype):
    data = bytearray(json.dumps(rows), "ascii")
    array = read(ArrayBody(dtype, "n 2"), data, formats.JSON, {})
    with np.errstate(all="ignore"):
        if isinstance(array, BodyRefused):
            assert any(_does_not_fit(number, np.dtype(dtype)) for row in rows for number in row)
        else:
            expected = np.array(orjson.loads(data), dtype="f8" if dtype[0] == "f" else "O").astype(dtype)
            assert np.array_equal(array, expected.reshape(-1, 2))


def _does_not_fit(number, dtype):
    if dtype.kind == "b":
        return True
    if dtype.kind == "f":
        return not np.isfinite(np.float64(number).astype(dtype))
    info = np.iinfo(dtype)
    if isinstance(number, float) and (not number.is_integer() or abs(number) > 2**53):
        return True
    return not (info.min <= number <= info.max) or not -(2**63) <= number < 2**64 or _mixed(dtype)


def _mixed(dtype):
    return dtype.itemsize == 8


@fuzz
@given(
    st.binary(max_size=32).map(bytearray),
    st.text(max_size=8)
    | st.sampled_from(["float32", "f4", "O", "V8", "S4", "M8[s]", "(2,)f4", ">f4", "f4,f4", "2T", "T"]),
    st.text("0123456789,- ", max_size=24),
)
def test_every_raw_header_is_understood_or_refused(data, dtype, shape):
    headers = {formats.DTYPE_HEADER: dtype, formats.SHAPE_HEADER: shape}
    check_array(ArrayBody("f4", "...", finite=False), data, formats.RAW, headers)


@pytest.mark.parametrize("kind", [formats.JSON, formats.SAFETENSORS, formats.ARROW])
def test_every_table_is_what_was_declared_or_is_refused(kind):
    @fuzz
    @given(mutated(SEEDS[kind]))
    def run(data):
        table = read(TableBody({"a": np.int64, "b": str}), data, kind)
        if isinstance(table, BodyRefused):
            assert table.status_code == 422
        else:
            assert [column.dtype for column in table.values()] == ["i8", "O"]
            assert len({len(column) for column in table.values()}) == 1

    run()


@fuzz
@given(st.text(max_size=60) | st.text("a/*;q=0.1, npyj", max_size=60))
def test_every_accept_header_is_answered(accept):
    assert negotiate(accept, [formats.JSON, formats.NPY]) in {None, formats.JSON, formats.NPY}


@fuzz
@given(st.text(max_size=60))
def test_every_content_type_is_read(kind):
    assert isinstance(media_type({b"content-type": kind.encode()}), str)
