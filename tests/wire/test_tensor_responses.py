import asyncio
import io
import json
import types
from enum import Enum

import numpy as np
import pytest
import torch
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import TensorResponse
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.negotiation import negotiate
from asgi_mlperf.wire.received import Received

pa = pytest.importorskip("pyarrow")
safetensors = pytest.importorskip("safetensors.numpy")

NPY = "application/x-npy"
RAW = "application/octet-stream"
SAFETENSORS = "application/x-safetensors"
ARROW = "application/vnd.apache.arrow.stream"


def get(content, accept=None, **options):
    app = Starlette(routes=[Route("/", lambda _request: TensorResponse(content, **options))])
    return TestClient(app).get("/", headers={"accept": accept or "*/*"})


def read_arrow(body):
    table = pa.ipc.open_stream(body).read_all()
    column = table.column(0).combine_chunks()
    if isinstance(column.type, pa.FixedShapeTensorType):
        values = column.storage.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), *column.type.shape)
    return column.to_numpy(zero_copy_only=False)


def read_raw(response):
    dtype, shape = response.headers["x-tensor-dtype"], response.headers["x-tensor-shape"]
    sizes = [int(size) for size in shape.split(",") if size]
    return np.frombuffer(response.content, np.dtype(dtype).newbyteorder("<")).reshape(sizes)


READ = {
    "application/json": lambda response: np.array(response.json()),
    NPY: lambda response: np.load(io.BytesIO(response.content), allow_pickle=False),
    RAW: read_raw,
    SAFETENSORS: lambda response: safetensors.load(response.content)["data"],
    ARROW: lambda response: read_arrow(response.content),
}
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8"]
LAYOUTS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: a.T,
    "strided": lambda a: a[:, ::2],
    "reversed": lambda a: a[::-1],
    "one column": lambda a: np.asfortranarray(a[:, :1]),
    "one axis": lambda a: a[1, ::-1],
    "three axes": lambda a: np.stack([a, a]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("media_type", READ)
def test_every_dtype_and_layout_arrives_in_every_format(media_type, dtype):
    for layout, lay_out in LAYOUTS.items():
        array = lay_out(np.array([[0, 1, 2], [1, 0, 100]]).astype(dtype))
        response = get(array, media_type)
        assert response.status_code == 200, layout
        assert response.headers["content-type"] == media_type
        assert response.headers["vary"] == "Accept"
        read = READ[media_type](response)
        assert (layout, read.shape) == (layout, array.shape)
        assert np.array_equal(read, array), layout
        if media_type != "application/json":
            assert read.dtype == array.dtype.newbyteorder("="), layout


@pytest.mark.parametrize("media_type", [NPY, RAW, SAFETENSORS])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0)])
def test_scalars_and_empty_arrays_keep_their_shape(media_type, shape):
    read = READ[media_type](get(np.zeros(shape, "f4"), media_type))
    assert (read.shape, read.dtype) == (shape, "f4")


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (0, 3, 4), (2, 0, 4)])
def test_empty_arrays_travel_in_arrow(shape):
    body = get(np.zeros(shape, "f4"), ARROW).content
    pa.ipc.open_stream(body).read_all().validate(full=True)
    read = ArrayBody("f4")._read(Received([body]), ARROW, {})
    assert read.shape == shape
    assert read.dtype == np.float32


@pytest.mark.parametrize("media_type", READ)
def test_tensors_of_every_kind_arrive_too(media_type):
    tensor = torch.nn.Parameter(torch.tensor([[0.5, 1.5]], dtype=torch.bfloat16)).T
    assert np.array_equal(READ[media_type](get(tensor, media_type)), [[0.5], [1.5]])


@pytest.mark.parametrize("media_type", [SAFETENSORS, ARROW])
def test_several_arrays_travel_by_name(media_type):
    response = get({"a": np.arange(2), "b": np.ones((2, 3), "f4")[:, ::2]}, media_type)
    if media_type == SAFETENSORS:
        arrays = safetensors.load(response.content)
    else:
        table = pa.ipc.open_stream(response.content).read_all()
        arrays = {"a": table["a"].to_numpy(), "b": table["b"].combine_chunks().to_numpy_ndarray()}
    assert arrays["a"].tolist() == [0, 1]
    assert arrays["b"].tolist() == [[1, 1], [1, 1]]


class Label(str, Enum):  # noqa: UP042 - the older way, which says "Label.CAT" of itself
    CAT = "cat"


@pytest.mark.parametrize("name", [np.str_("cat"), Label.CAT])
def test_names_may_be_strings_of_any_kind(name):
    assert list(safetensors.load(get({name: np.ones(1)}, SAFETENSORS).content)) == ["cat"]
    assert pa.ipc.open_stream(get({name: np.ones(1)}, ARROW).content).read_all().column_names == ["cat"]
    assert pa.ipc.open_stream(get({"__metadata__": np.ones(1)}, ARROW).content).read_all().num_columns == 1


def test_what_only_json_can_say_is_offered_as_json_only():
    assert get({"a": np.ones(1), "note": "hi"}, f"{NPY}, */*;q=0.1").json() == {"a": [1], "note": "hi"}
    assert get({"a": np.ones(1)}, NPY).status_code == 406
    refusal = get(np.ones(1), "text/html")
    assert refusal.status_code == 406
    assert NPY in refusal.text


@pytest.mark.parametrize(
    ("content", "accept", "message"),
    [
        (np.array(["a"]), NPY, r"^\$: <U1 has no binary form"),
        (np.array([None]), RAW, r"^\$: object has no binary form"),
        (np.ma.masked_array([1], [True]), NPY, r"^\$: int64 has no binary form"),
        ({"a": np.zeros(1, "i4,i4")}, SAFETENSORS, r"^\$\.a: .* has no binary form"),
        ({"a": np.ones(1), "b": np.ones(2)}, ARROW, r"^\$: columns of different lengths \[1, 2\]"),
        ({1: np.ones(1)}, SAFETENSORS, r"^\$: 1 cannot name an array in safetensors"),
        ({1: np.ones(1)}, ARROW, r"^\$: 1 cannot name an array in arrow"),
        ({"\ud800": np.ones(1)}, ARROW, r"^\$: '\\ud800' cannot name an array in arrow"),
        ({"a" * 2_000_000: np.ones(1)}, SAFETENSORS, r"^\$: names of 20\d{5} bytes in all"),
        (np.ones(1, "c8"), ARROW, r"^\$\.data: Arrow cannot hold complex64"),
        (np.empty((2**33, 0), "f4"), ARROW, r"^\$: Arrow cannot hold that many: .*2\^31"),
        ({"__metadata__": np.ones(1)}, SAFETENSORS, r"^\$: '__metadata__' cannot name an array"),
        (torch.eye(2).to_sparse(), NPY, r"^\$: sparse_coo tensor: call .to_dense"),
    ],
    ids=str,
)
def test_what_a_format_cannot_say_is_refused_before_anything_is_sent(content, accept, message):
    with pytest.raises(UnserializableError, match=message):
        get(content, accept)


@pytest.mark.parametrize("accept", [NPY, "application/json"])
def test_status_headers_and_background_survive_the_negotiation(accept):
    ran = []
    task = BackgroundTask(ran.append, 1)
    response = get(np.ones(2), accept, status_code=202, headers={"x-a": "b"}, background=task)
    assert (response.status_code, response.headers["x-a"], ran) == (202, "b", [1])
    assert len(response.headers.get_list("content-length")) == 1


def sent_by(response, accept):
    messages = []

    async def send(message):
        messages.append(message)

    asyncio.run(response({"type": "http", "headers": [(b"accept", accept.encode())]}, None, send))
    return messages


def test_a_body_does_not_change_when_its_array_does_while_it_is_sent():
    array = np.ones(1_000_000)
    response = TensorResponse(array)
    bodies = []

    async def send(message):
        array[:] = 7
        bodies.append(message.get("body", b""))

    asyncio.run(response({"type": "http", "headers": [(b"accept", NPY.encode())]}, None, send))
    assert len(bodies) > 2
    assert (np.load(io.BytesIO(b"".join(bodies))) == 1).all()


@pytest.mark.parametrize("media_type", [NPY, RAW, SAFETENSORS, ARROW])
def test_a_heavy_tensor_is_sent_in_pieces_and_in_full(media_type):
    array = np.random.default_rng(0).random(1_000_000)
    start, *bodies = sent_by(TensorResponse(array), media_type)
    text = b"".join(message["body"] for message in bodies)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(bodies) > 2
    assert headers["content-length"] == str(len(text))
    reply = types.SimpleNamespace(content=text, headers=headers)
    assert np.array_equal(READ[media_type](reply), array)


OFFERS = ["application/json", NPY]


@pytest.mark.parametrize(
    ("accept", "choice"),
    [
        (None, OFFERS[0]), ("", OFFERS[0]), ("*/*", OFFERS[0]), ("application/*", OFFERS[0]), (NPY, NPY),
        (NPY.upper(), NPY), (f"application/json;q=0.5, {NPY}", NPY), (f"*/*, {NPY};q=0.1", OFFERS[0]),
        ("*/*;q=0.1, application/json;q=0", NPY), (f"{NPY};q=0", None), ("text/html", None),
        (f"{NPY};q=oops", None), (f"{NPY};q=2", None), ("nonsense", None), (";;,,/", None),
        (f"{NPY};charset=x;q=1", NPY), (f"application/*;q=0.2, {NPY};q=0.1", OFFERS[0]),
        ("*/*;q=0", None), ("a/b," * 100 + NPY, None),
    ],
    ids=str,
)  # fmt: skip
def test_the_client_gets_what_it_likes_best(accept, choice):
    assert negotiate(accept, OFFERS) == choice


def test_json_of_a_tensor_response_is_the_json_of_everything_else():
    assert get({"y": torch.ones(2)}).content == json.dumps({"y": [1.0, 1.0]}, separators=(",", ":")).encode()
