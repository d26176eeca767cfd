import io
import json
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.wire import JSONSettings, TensorResponse, json_arrays, json_numbers, json_settings
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.nested import Nested
from asgi_mlperf.wire.shapes import Shape
from asgi_mlperf.wire.tables import TableBody

pa = pytest.importorskip("pyarrow")
safetensors = pytest.importorskip("safetensors.numpy")

JSON = "application/json"
NPY = "application/x-npy"
RAW = "application/octet-stream"
SAFETENSORS = "application/x-safetensors"
ARROW = "application/vnd.apache.arrow.stream"


def post(parser, data, kind=JSON, **headers):
    """What the parser made of a body, or the status and the errors of the refusal."""
    made = []

    async def endpoint(request):
        made.append(await parser(request))
        return Response()

    client = TestClient(Starlette(routes=[Route("/", endpoint, methods=["POST"])]))
    response = client.post("/", content=data, headers={"content-type": kind, **headers})
    if response.status_code == 200:
        return made[0]
    assert response.headers["content-type"] == JSON
    return response.status_code, response.json()["detail"]


@pytest.fixture(params=["short lists", "simdjson", "orjson"])
def any_reader(request, monkeypatch):
    if request.param != "short lists":
        monkeypatch.setattr(json_arrays, "short_list", lambda *_: None)
    if request.param == "orjson":
        monkeypatch.setattr(json_numbers, "_parser", lambda: None)


with_any_reader = pytest.mark.usefixtures("any_reader")


def refusal(parser, data, kind=JSON, **headers):
    status, [error] = post(parser, data, kind, **headers)
    return status, error["type"], error["loc"]


def header_of(text, version=1):
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def arrow(columns, **options):
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def tensor(array):
    if array.ndim == 1:
        return pa.array(array)
    flat = pa.array(array.ravel())
    kind = pa.fixed_shape_tensor(flat.type, array.shape[1:])
    size = int(np.prod(array.shape[1:]))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, size))


def raw_headers(array):
    return {"x-tensor-dtype": array.dtype.name, "x-tensor-shape": ",".join(map(str, array.shape))}


SEND = {
    JSON: lambda a: (json.dumps(a.tolist()), {}),
    NPY: lambda a: (npy(a), {}),
    RAW: lambda a: (a.astype(a.dtype.newbyteorder("<")).tobytes(), raw_headers(a)),
    SAFETENSORS: lambda a: (safetensors.save({"x": np.ascontiguousarray(a)}), {}),
    ARROW: lambda a: (arrow({"x": tensor(np.ascontiguousarray(a))}), {}),
}
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


@pytest.mark.parametrize("kind", SEND)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3), (3, 2)])
def test_every_dtype_and_shape_is_read_from_every_format(kind, dtype, shape):
    array = np.array([0, 1, 1, 0, 1, 1.5 if dtype[0] == "f" else 1]).astype(dtype).reshape(shape)
    data, headers = SEND[kind](array)
    read = post(ArrayBody(dtype, " ".join(map(str, shape))), data, kind, **headers)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    assert read.flags.c_contiguous
    assert read.flags.writeable
    assert read.flags.aligned


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3)).T, np.arange(3, dtype=">f4"), np.asfortranarray(np.eye(3))]
)
def test_npy_files_of_every_layout_are_read(array):
    read = post(ArrayBody(array.dtype.newbyteorder("=")), npy(array), NPY)
    assert np.array_equal(read, array)
    assert read.flags.c_contiguous


OTHER_NPY = {
    "order": header_of(b"{'shape': (2, 1), 'fortran_order': True, 'descr': '<f4'}"),
    "double quotes": header_of(b'{"descr":"<f4","fortran_order":False,"shape":(2,1)}'),
    "spaces": header_of(b"  { 'descr' :  '<f4' , 'fortran_order' : False , 'shape' : ( 2 , 1 , ) , }  "),
    "Python 2": header_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }"),
    "native": header_of(b"{'descr': '=f4', 'fortran_order': False, 'shape': (2, 1,), }"),
    "version 2": header_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }", 2),
    "version 3": header_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }", 3),
}


@pytest.mark.parametrize("name", OTHER_NPY)
def test_npy_files_of_other_libraries_are_read(name):
    read = post(ArrayBody("f4"), OTHER_NPY[name] + np.array([1, 2], "<f4").tobytes(), NPY)
    assert read.tolist() == [[1], [2]]


def test_raw_bytes_may_be_big_endian_where_the_header_says_so():
    headers = {"x-tensor-dtype": ">i2", "x-tensor-shape": "2"}
    assert post(ArrayBody("i2"), np.array([1, 2], ">i2").tobytes(), RAW, **headers).tolist() == [1, 2]


@pytest.mark.parametrize("kind", SEND)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 3)])
def test_what_is_written_here_is_read_here(kind, shape):
    array = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    app = Starlette(routes=[Route("/", lambda _request: TensorResponse(array))])
    written = TestClient(app).get("/", headers={"accept": kind})
    headers = {name: value for name, value in written.headers.items() if name.startswith("x-tensor")}
    assert np.array_equal(post(ArrayBody("f4"), written.content, kind, **headers), array)


@with_any_reader
@pytest.mark.parametrize("kind", [JSON, NPY, RAW, SAFETENSORS])
def test_empty_arrays_are_read(kind):
    data, headers = SEND[kind](np.zeros((0, 256), "f4"))
    assert post(ArrayBody("f4", "n 256"), data, kind, **headers).shape == (0, 256)


@with_any_reader
def test_a_single_number_is_read_as_an_array_without_axes():
    assert post(ArrayBody("f4", ""), "1.5").shape == ()


def test_raw_bytes_take_dtype_and_shape_from_the_declaration():
    data = np.arange(6, dtype="f4").tobytes()
    assert post(ArrayBody("f4", "n 3"), data, RAW).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert post(ArrayBody("f4", "2 3"), data, RAW).shape == (2, 3)
    assert refusal(ArrayBody("f4", "2 2"), data, RAW) == (422, "header", ["body"])
    assert refusal(ArrayBody("f4", "n m"), data, RAW) == (422, "header", ["body"])
    headers = {"x-tensor-shape": "2,3"}
    assert refusal(ArrayBody("f4"), data[:-1], RAW, **headers) == (422, "length", ["body"])
    assert refusal(ArrayBody("f4", "n 3"), data[:-3], RAW) == (422, "header", ["body"])


@with_any_reader
def test_numbers_change_their_width_only_when_they_fit():
    assert post(ArrayBody("f4"), npy(np.array([0.1])), NPY).tolist() == [np.float32(0.1)]
    assert post(ArrayBody("u1"), npy(np.array([255])), NPY).tolist() == [255]
    assert post(ArrayBody("f8"), npy(np.array([2])), NPY).tolist() == [2.0]
    assert post(ArrayBody("u8"), json.dumps([2**64 - 1])).tolist() == [2**64 - 1]
    assert post(ArrayBody("i8"), "[1.0, 2]").tolist() == [1, 2]
    for dtype, values, loc in [
        ("u1", [[1, 256]], [0, 1]),
        ("u4", [-1], [0]),
        ("f4", [0, 1e39], [1]),
        ("f2", [7e4], [0]),
    ]:
        assert refusal(ArrayBody(dtype), npy(np.array(values)), NPY) == (422, "out_of_range", ["body", *loc])
        assert refusal(ArrayBody(dtype), json.dumps(values)) == (422, "out_of_range", ["body", *loc])
    assert refusal(ArrayBody("i8"), npy(np.array([2**63], "u8")), NPY) == (422, "out_of_range", ["body", 0])
    for dtype, array in [
        ("i8", np.ones(1)),
        ("f4", np.array([True])),
        ("?", np.ones(1, "i8")),
        ("f4", np.array([1j])),
    ]:
        assert refusal(ArrayBody(dtype), npy(array), NPY) == (422, "dtype", ["body"])


@with_any_reader
@pytest.mark.parametrize(
    ("dtype", "shape", "data", "kind", "loc"),
    [
        ("f4", "n 2", "[[1,2],[3]]", "ragged", [1]),
        ("f4", "n 2", "[[1,2],3]", "ragged", [1]),
        ("f4", "...", "[[[1],[2]],[[3],4]]", "ragged", [1, 1]),
        ("f4", "n 2", "[[1,2,3]]", "shape", []),
        ("f4", "n n", "[[1,2,3]]", "shape", []),
        ("f4", "n", "[[1]]", "shape", []),
        ("f4", "n", "3", "shape", []),
        ("f4", "n", '{"a":1}', "shape", []),
        ("f4", "n", "[1,[2]]", "type", [1]),
        ("f4", "n 2", '[[1,2],[3,"4"]]', "type", [1, 1]),
        ("f4", "n", "[1,null]", "type", [1]),
        ("f4", "n", "[1,true]", "type", [1]),
        ("?", "n", "[true,1]", "type", [1]),
        ("i4", "n", "[1,1.5]", "int_from_float", [1]),
        ("i8", "n", "[1,1e300]", "int_from_float", [1]),
        ("i8", "n", "[-1,18446744073709551615]", "out_of_range", [1]),
        ("u8", "n", "[18446744073709551615,-1]", "out_of_range", [1]),
        ("f4", "n", "[1,", "json_invalid", [3]),
        ("f4", "n", "", "json_invalid", [0]),
        ("f8", "n", "[1e400]", "json_invalid", [1]),
        ("f8", "n", "[NaN]", "json_invalid", [1]),
        ("f8", "...", "[" * 100_000 + "]" * 100_000, "json_invalid", [1025]),
        ("f8", "...", "[" * 40 + "]" * 40, "shape", []),
        ("f8", "n", b"\xff", "json_invalid", [0]),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_json_that_is_not_the_array_is_refused_where_it_stands(dtype, shape, data, kind, loc):
    assert refusal(ArrayBody(dtype, shape), data) == (422, kind, ["body", *loc])


@pytest.mark.parametrize("kind", [NPY, SAFETENSORS, ARROW, RAW])
def test_nan_is_refused_where_it_stands_unless_it_may_be_there(kind):
    data, headers = SEND[kind](np.array([[0, 1], [np.inf, np.nan]], "f4"))
    assert refusal(ArrayBody("f4"), data, kind, **headers) == (422, "finite_number", ["body", 1, 0])
    read = post(ArrayBody("f4", finite=False), data, kind, **headers)
    assert np.isnan(read[1, 1])


def test_arrow_nulls_are_refused_as_such():
    kind, data = HOSTILE["nulls"]
    assert refusal(ArrayBody("f4", finite=False), data, kind) == (422, "null", ["body", "x"])


@pytest.mark.parametrize("dtype", ["i1", "i8", "u2", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(48,), (2, 24), (1, 48), (2, 2, 12), (3, 1, 1, 16)])
def test_simdjson_reads_whatever_numbers_fill_an_array(dtype, shape):
    numbers = np.array([0, 1, 127, 3, 2, 100] * 8, dtype).reshape(shape)
    read = json_numbers.read_numbers(json.dumps(numbers.tolist()).encode(), numbers.dtype)
    assert np.array_equal(read, numbers)


@pytest.mark.parametrize("text", [
    "", "1", "[]", "[[],[]]", "[[1],[2],[3]]", "[1,[2]]", "[[1],2]", "[[1],[2,3]]", "[[1,[2]],[3,4]]",
    "[[[1]],[2]]", "[[1],[[2]]]", '["a"]', '[["["]]', "[{}]", '[{"a":1}]', "[null]", "[true]", "[1]]",
    "[1] [2]", "[1e999]", "\ufeff[1]", "[18446744073709551616]",
    "[" * 2000 + "]" * 2000, "[" * 65 + "1," * 1000 + "1" + "]" * 65, "[" * 33 + "1," * 1000 + "1" + "]" * 33,
])  # fmt: skip
def test_simdjson_leaves_everything_else_to_orjson(text):
    assert json_numbers.read_numbers(text.encode(), np.dtype("f8")) is None


@pytest.mark.parametrize("text", [
    "[1, 2]", "[1.5e1]", "[]", "[ 1] ", "[18446744073709551616]", "[1" + ",1" * 2000 + "]",
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_short_list_of_numbers_is_read_at_once(text, dtype):
    read = json_arrays.short_list(text.encode(), np.dtype(dtype))
    assert read.dtype == dtype
    assert read.flags.carray
    assert np.array_equal(read, np.array(json.loads(text), dtype))


@with_any_reader
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_rows_of_any_width_are_read(dtype):
    for shape in [(1, 3), (1, 40), (3, 2), (3, 40)]:
        array = np.random.default_rng(0).random(shape).astype(dtype)
        read = post(ArrayBody(dtype, "n m"), json.dumps(array.tolist()))
        assert read.dtype == dtype
        assert np.array_equal(read, array)


@pytest.mark.parametrize("text", [
    "", "1", " [1]", "[[1]]", "[null]", "[true]", "[1,false]", '["1"]', "{}", "[1,]", "[1e39]", "[NaN]",
    "[1" + ",1" * 2048 + "]",
])  # fmt: skip
def test_what_is_no_short_list_of_numbers_is_left_to_other_readers(text):
    assert json_arrays.short_list(text.encode(), np.dtype("f4")) is None


@pytest.mark.parametrize(("text", "dtype"), [("[[1,2],[3,4]]", "f4"), ("[1,2]", "i8"), ("[1,2]", ">f4")])
def test_what_the_reader_of_short_lists_does_not_know_is_not_parsed_for_it(text, dtype, monkeypatch):
    monkeypatch.setattr(json_arrays, "orjson", None)
    assert json_arrays.short_list(text.encode(), np.dtype(dtype)) is None


@pytest.mark.parametrize("error", [ImportError, RuntimeError, AttributeError])
def test_json_is_read_where_simdjson_is_missing_or_broken(error, monkeypatch):
    def importing(name):
        raise error

    monkeypatch.setattr(json_numbers, "import_module", importing)
    json_numbers._parser.cache_clear()
    assert post(ArrayBody("f4"), "[[1,2]]").tolist() == [[1, 2]]
    json_numbers._parser.cache_clear()


@with_any_reader
@pytest.mark.parametrize(
    ("dtype", "shape", "data", "kind", "loc"),
    [
        ("i1", "n 3", f"[{[1, 300] + [1] * 30}]", "out_of_range", [0, 1]),
        ("f4", "n n", f"[{[1e39] + [1] * 30}]", "out_of_range", [0, 0]),
        ("f4", "n", "[" * 40 + f"{[1] * 300}" + "]" * 40, "shape", []),
        ("f4", "...", "[" * 70 + f"{[1] * 300}" + "]" * 70, "shape", []),
    ],
)
def test_of_two_things_that_are_wrong_either_reader_names_the_same(dtype, shape, data, kind, loc):
    assert refusal(ArrayBody(dtype, shape), data) == (422, kind, ["body", *loc])


@with_any_reader
def test_null_is_nan_where_nan_may_be():
    assert np.isnan(post(ArrayBody("f4", finite=False), "[1,null]")[1])


def header(descr="'<f4'", shape="(1,)", version=b"\x01\x00", fortran="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


HOSTILE_NPY = {
    "pickle": npy(np.array([object], dtype=object)),
    "plain pickle": pickle.dumps(print),
    "ten terabytes": header(shape="(10000000000000,)"),
    "overflowing shape": header(shape="(4294967296, 4294967296)"),
    "zero times many": header(shape="(0, 9223372036854775807, 9223372036854775807)"),
    "negative": header(shape="(-1,)"),
    "too many axes": header(shape="(" + "1," * 100 + ")") + bytes(4),
    "shape of strings": header(shape="('a',)"),
    "no dtype": header(descr="'nonsense'"),
    "a dtype that ends the process": header(descr="'2T'"),
    "twice the same": header_of(b"{'descr': '<f4', 'descr': '<f4', 'shape': (1,)}") + bytes(4),
    "spaces": header_of(b"{'descr': '<f4'" + b" " * 99_000 + b"x}", 2),
    "commas": header_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 49_000 + b"x)}", 2),
    "void of nothing": header(descr="'|V0'"),
    "sub-array": header(descr="('<f4', (2,))") + bytes(8),
    "code": header(descr="__import__('os')"),
    "nested": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    "truncated": b"\x93NUMPY\x01",
    "too short": header(shape="(2,)") + bytes(4),
    "too long": header(shape="(2,)") + bytes(12),
    "version 9": header(version=b"\x09\x09"),
    "empty": b"",
    "huge header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_hostile_npy_files_are_refused(name):
    status, _, _ = refusal(ArrayBody("f4"), HOSTILE_NPY[name], NPY)
    assert status == 422


def safetensors_header(text):
    return len(text).to_bytes(8, "little") + text


def arrow_of_twins():
    sink = pa.BufferOutputStream()
    table = pa.table([pa.array([1.5]), pa.array([2.5])], names=["x", "x"])
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


HOSTILE = {
    "safetensors of ten terabytes": (SAFETENSORS, (10**13).to_bytes(8, "little") + b"{}"),
    "tensor of ten terabytes": (
        SAFETENSORS,
        safetensors_header(b'{"x":{"dtype":"F32","shape":[2500000000000],"data_offsets":[0,10000000000000]}}'),
    ),
    "bfloat16": (
        SAFETENSORS,
        safetensors_header(b'{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}') + b"ab",
    ),
    "offsets that are no integers": (
        SAFETENSORS,
        safetensors_header(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}}') + bytes(4),
    ),
    "nothing but brackets": (JSON, b"[" * 3_000_000),
    "columns of one name": (ARROW, arrow_of_twins()),
    "no tensors": (SAFETENSORS, safetensors_header(b"{}")),
    "two tensors": (SAFETENSORS, safetensors.save({"x": np.ones(1), "y": np.ones(1)})),
    "not safetensors": (SAFETENSORS, b"x" * 100),
    "safetensors without a header": (SAFETENSORS, bytes(8)),
    "tensors that overlap": (
        SAFETENSORS,
        safetensors_header(
            b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            b'"y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'
        )
        + bytes(6),
    ),
    "tensors with a gap": (
        SAFETENSORS,
        safetensors_header(b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}') + bytes(6),
    ),
    "tensors with a rest": (
        SAFETENSORS,
        safetensors_header(b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}') + bytes(6),
    ),
    "tensor of another size": (
        SAFETENSORS,
        safetensors_header(b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}') + bytes(4),
    ),
    **{
        f"safetensors with {header!r:.60}": (SAFETENSORS, safetensors_header(header) + bytes(4))
        for header in (
            b"[]",
            b"5",
            b"{",
            b'{"x":5}',
            b'{"x":{}}',
            b'{"x":{"dtype":"U8","shape":"4","data_offsets":[0]}}',
            b'{"x":{"dtype":"U8","shape":[[]],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"U8","shape":[4],"data_offsets":["0",4]}}',
            b'{"x":{"dtype":"C64","shape":[],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":5}',
            b"{" + b" " * 1_000_001 + b"}",
        )
    },
    "not arrow": (ARROW, b"x" * 100),
    "empty arrow": (ARROW, b""),
    "truncated arrow": (ARROW, arrow({"x": pa.array([1.5] * 100)})[:-300]),
    "compressed arrow": (ARROW, arrow({"x": pa.array([1.5] * 10_000)}, compression="zstd")),
    "lz4 arrow": (ARROW, arrow({"x": pa.array([1.5] * 10_000)}, compression="lz4")),
    "dictionary": (ARROW, arrow({"x": pa.array(["a"]).dictionary_encode()})),
    "nulls": (ARROW, arrow({"x": pa.array([1.5, None])})),
    "nothing but nulls": (ARROW, arrow({"x": pa.nulls(10**6)})),
    "lists": (ARROW, arrow({"x": pa.array([[1.5], []])})),
    "two columns": (ARROW, arrow({"x": pa.array([1.5]), "y": pa.array([1.5])})),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_in_bounded_memory(name):
    kind, data = HOSTILE[name]
    refusal(ArrayBody("f4"), data, kind)
    tracemalloc.start()
    status, _, _ = refusal(ArrayBody("f4"), data, kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 422
    assert peak < 20_000_000


@pytest.mark.parametrize("headers", [
    {"x-tensor-dtype": "object", "x-tensor-shape": "1"}, {"x-tensor-dtype": "O"}, {"x-tensor-dtype": "f4,f4"},
    {"x-tensor-dtype": "nonsense"}, {"x-tensor-shape": "-1,-8"}, {"x-tensor-shape": "a"},
    {"x-tensor-dtype": "V0"}, {"x-tensor-dtype": "2T"}, {"x-tensor-dtype": "c8"},
    {"x-tensor-shape": "9" * 5000}, {"x-tensor-dtype": "("}, {"x-tensor-shape": "0," + "9" * 30},
    {"x-tensor-dtype": "{'names':['a'],'formats':['f4']}"}, {"x-tensor-shape": "1," * 70 + "2"},
])  # fmt: skip
def test_hostile_headers_are_refused(headers):
    status, _, _ = refusal(ArrayBody("f4", "n"), bytes(8), RAW, **headers)
    assert status == 422


def test_other_formats_and_compressed_bodies_are_unsupported():
    status, [error] = post(ArrayBody("f4"), b"", "application/x-pickle")
    assert (status, error["type"]) == (415, "media_type")
    assert NPY in error["msg"]
    bomb = zlib.compress(bytes(10**6))
    assert refusal(ArrayBody("f4"), bomb, RAW, **{"content-encoding": "deflate"})[0] == 415
    assert post(ArrayBody("f4", "n"), "[1]", "application/vnd.api+json; charset=utf-8").tolist() == [1]


def test_bodies_above_the_limit_are_refused_before_they_are_read():
    token = json_settings.set(JSONSettings(body_limit_bytes=100))
    try:
        assert refusal(ArrayBody("f4"), "[" + "1," * 50 + "1]")[:2] == (413, "too_large")
        assert refusal(ArrayBody("f4"), iter([b"[1,"] + [b"1,"] * 50))[:2] == (413, "too_large")
        assert refusal(ArrayBody("f4"), "[1]", **{"content-length": "9" * 5000})[0] == 413
        assert post(ArrayBody("f4"), "[" + "1," * 48 + "1]").shape == (49,)
    finally:
        json_settings.reset(token)


@pytest.mark.parametrize("shape", [(300_000,), (3000, 100), (100_000, 3), (300, 10, 100), (150_000, 1)])
def test_large_json_is_read_in_pieces_as_it_is_in_one(shape, monkeypatch):
    array = np.random.default_rng(0).random(shape, dtype="f4")
    data = json.dumps(array.tolist(), indent=1 if shape == (3000, 100) else None)
    pieces = []
    add = Nested.add

    def counted(nested, value, **options):
        pieces.append(value)
        add(nested, value, **options)

    monkeypatch.setattr(Nested, "add", counted)
    assert np.array_equal(post(ArrayBody("f4"), data), array)
    assert len(pieces) > 10


@pytest.mark.parametrize("chunks", [[b"[1,2", b",3]"], [b"[1,2,3", b"]"]])
def test_heavy_bodies_may_come_without_a_length(chunks):
    token = json_settings.set(JSONSettings(offload_bytes=5))
    try:
        assert post(ArrayBody("f4"), iter(chunks)).tolist() == [1, 2, 3]
        raw = np.arange(6, dtype="f4").tobytes()
        assert post(ArrayBody("f4", "n"), iter([raw[:7], raw[7:]]), RAW).tolist() == list(range(6))
    finally:
        json_settings.reset(token)


def test_bodies_that_middleware_made_longer_than_they_say_are_read():
    token = json_settings.set(JSONSettings(offload_bytes=1, body_limit_bytes=9))
    try:
        assert post(ArrayBody("f4"), "[1,2,3]", **{"content-length": "3"}).tolist() == [1, 2, 3]
        assert refusal(ArrayBody("f4"), "[1,2,3,4,5]", **{"content-length": "3"})[:2] == (413, "too_large")
        assert post(ArrayBody("f4"), "[1,2,3]", **{"content-length": "9"}).tolist() == [1, 2, 3]
    finally:
        json_settings.reset(token)


def test_heavy_bodies_are_read_off_the_event_loop():
    token = json_settings.set(JSONSettings(offload_bytes=0))
    try:
        assert post(ArrayBody("f4"), "[1]").tolist() == [1]
        assert refusal(ArrayBody("f4"), "[") == (422, "json_invalid", ["body", 1])
    finally:
        json_settings.reset(token)


@pytest.mark.parametrize(
    ("dtype", "shape"), [(object, "n"), ("U1", "n"), ("c8", "n"), ("f4", "n-1"), ("f4", "... ...")]
)
def test_what_cannot_be_declared_is_refused_at_once(dtype, shape):
    with pytest.raises(ConfigurationError):
        ArrayBody(dtype, shape)


@pytest.mark.parametrize(
    ("shape", "sizes", "fits"),
    [
        ("n 256", (3, 256), True), ("n 256", (3, 255), False), ("n n", (2, 2), True), ("n n", (2, 3), False),
        ("_ _", (2, 3), True), ("...", (), True), ("...", (1, 2), True), ("... 3", (3,), True),
        ("... 3", (), False), ("n ... n", (2, 9, 2), True), ("n ... n", (2, 9, 3), False), ("", (), True),
        ("", (1,), False), ("n", (0,), True),
    ],
)  # fmt: skip
def test_shapes_are_what_they_say(shape, sizes, fits):
    assert Shape(shape).fits(sizes) is fits


COLUMNS = TableBody({"age": np.int32, "city": str, "score": np.float32})
TABLE = {"age": [1, 2], "city": ["Bonn", "Köln"], "score": [0.5, 1], "extra": [None, None]}


@pytest.mark.parametrize("kind", ["columns", "records", ARROW])
def test_tables_are_read_as_typed_columns(kind):
    records = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
    columns = {name: pa.array(values) for name, values in TABLE.items() if name != "extra"}
    data, media_type = {
        "columns": (json.dumps(TABLE), JSON),
        "records": (json.dumps(records), JSON),
        ARROW: (arrow(columns), ARROW),
    }[kind]  # fmt: skip
    table = post(COLUMNS, data, media_type)
    assert list(table) == ["age", "city", "score"]
    assert {name: column.tolist() for name, column in table.items()} == {name: TABLE[name] for name in table}
    assert [column.dtype for column in table.values()] == ["i4", "O", "f4"]


def test_arrow_text_that_points_outside_its_buffer_is_refused():
    data = arrow({"city": pa.array(["aaaa", "bbbb"])})
    offsets = struct.pack("<3i", 0, 4, 8)
    assert data.count(offsets) == 1
    hostile = data.replace(offsets, struct.pack("<3i", 0, 4, 1 << 20))
    assert post(TableBody({"city": str}), data, ARROW)["city"].tolist() == ["aaaa", "bbbb"]
    assert refusal(TableBody({"city": str}), hostile, ARROW) == (422, "arrow_invalid", ["body"])


def test_tables_of_numbers_may_be_safetensors():
    table = post(TableBody({"a": np.float32}), safetensors.save({"a": np.ones(2, "f4")}), SAFETENSORS)
    assert table["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("data", "kind", "loc"),
    [
        ({**TABLE, "age": [1]}, "length", []),
        ({"age": [1], "city": ["a"]}, "missing", ["score"]),
        ({**TABLE, "age": [1, "2"]}, "type", ["age", 1]),
        ({**TABLE, "age": [1, 2**40]}, "out_of_range", ["age", 1]),
        ({**TABLE, "age": [[1], [2]]}, "type", ["age", 0]),
        ({**TABLE, "age": 1}, "list_type", ["age"]),
        ({**TABLE, "city": ["a", 1]}, "string_type", ["city", 1]),
        ({**TABLE, "score": [1, None]}, "type", ["score", 1]),
        ([{"age": 1, "city": "a", "score": 1}, {"age": 1, "city": "a"}], "missing", [1, "score"]),
        ([1], "type", [0]),
        ("x", "type", []),
    ],
    ids=str,
)
def test_a_table_that_is_not_what_was_declared_is_refused_where_it_stands(data, kind, loc):
    assert refusal(COLUMNS, json.dumps(data)) == (422, kind, ["body", *loc])


def test_tables_without_columns_or_with_odd_dtypes_cannot_be_declared():
    for columns in ({}, {"a": "c8"}, {"a": "M8[s]"}):
        with pytest.raises(ConfigurationError):
            TableBody(columns)
