import decimal
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import JSONSettings, ORJSONResponse
from asgi_mlperf.wire.exact import Walk

ml_dtypes: Any = pytest.importorskip("ml_dtypes")
pd: Any = pytest.importorskip("pandas")
pl: Any = pytest.importorskip("polars")
pa: Any = pytest.importorskip("pyarrow")

NUMBERS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g"]
LAYOUTS: dict[str, Any] = {
    "contiguous": lambda a: a,
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[::-1, ::-1],
    "transposed": lambda a: a.T,
    "fortran": np.asfortranarray,
    "broadcast": lambda a: np.broadcast_to(a[:1], (3, a.shape[1])),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "scalar": lambda a: a[1, 1],
    "0-d": lambda a: np.array(a[1, 1]),
    "empty": lambda a: a[:, :0],
    "no rows": lambda a: a[:0],
    "one row": lambda a: a[1],
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "subclass": lambda a: a.view(type("Mine", (np.ndarray,), {})),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}
NESTINGS: dict[str, Any] = {
    "alone": (lambda a: a, lambda j: j),
    "in a dict": (lambda a: {"y": a}, lambda j: j["y"]),
    "in a list of dicts": (lambda a: [{"a": 1}, {"y": (a,)}], lambda j: j[1]["y"][0]),
    "in an object array": (lambda a: {"y": _boxed(a)}, lambda j: j["y"][0]),
}


def _boxed(value):
    box = np.empty(1, dtype=object)
    box[0] = value
    return box


def render(value) -> Any:
    return json.loads(bytes(ORJSONResponse(value).body))


def walk(value, **settings) -> Any:
    return json.loads(b"".join(Walk(JSONSettings(**settings)).texts(value)))


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("encode", [render, walk])
def test_every_dtype_in_every_layout_and_nesting_reads_back_as_the_same_numbers(encode, nesting, dtype):
    numbers = np.array([[0, 1, 2], [1, 0.1 if dtype in "f2f4f8g" else 1, 100]]).astype(dtype)
    wrap, unwrap = NESTINGS[nesting]
    for layout, lay_out in LAYOUTS.items():
        array = lay_out(numbers)
        plain = np.array(unwrap(encode(wrap(array))), dtype=array.dtype)
        assert (layout, plain.shape) == (layout, np.shape(array.tolist()))
        assert np.array_equal(plain, array.reshape(plain.shape)), layout


@pytest.mark.parametrize("dtype", NUMBERS[1:9])
def test_the_extremes_of_every_integer_survive(dtype):
    info = np.iinfo(dtype)
    assert render(np.array([info.min, info.max], dtype)) == [info.min, info.max]


def test_float32_is_written_in_its_own_shortest_form():
    assert ORJSONResponse(np.array([0.1, 1e-30], "f4")).body == b"[0.1,1e-30]"
    assert ORJSONResponse([np.float32(0.1)]).body == b"[0.1]"


def test_long_doubles_keep_every_digit():
    third = np.longdouble(1) / 3
    body = ORJSONResponse({"y": np.array([third])}).body
    [text] = json.loads(body, parse_float=str)["y"]
    assert np.longdouble(text) == third


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: a[::2], lambda a: a.astype(object), list])
@pytest.mark.parametrize("encode", [render, walk])
def test_nan_and_infinities_become_null(encode, dtype, wrap):
    array = np.array([np.nan, 1, np.inf, 1, -np.inf, 1], dtype)
    assert encode(wrap(array)) == [x if np.isfinite(x) else None for x in wrap(array)]


@pytest.mark.parametrize("encode", [render, walk])
def test_masked_values_become_null_whatever_lies_under_them(encode):
    array = np.ma.masked_array([[1.5, np.nan], [3, 4]], mask=[[True, False], [False, True]])
    assert encode({"y": array}) == {"y": [[None, None], [3, None]]}
    assert encode([array[0, 0], array[1, 0], np.ma.masked_array(7), np.ma.array(7, mask=True)]) == [
        None, 3, 7, None,
    ]  # fmt: skip


@pytest.mark.parametrize("encode", [render, walk])
def test_structured_arrays_become_records(encode):
    dtype = [("name", "U5"), ("box", "f4", 2), ("at", [("x", ">i2")])]
    array = np.array([("cat", (1, 0.1), (7,))], dtype)
    record = {"name": "cat", "box": [1, 0.1], "at": {"x": 7}}
    assert encode([array, array[0], array.reshape(1, 1)]) == [[record], record, [[record]]]
    masked = np.ma.masked_array(np.array([(1, 2)], "i4,i4"), mask=[(True, False)])
    assert encode([masked, masked[0]]) == [[{"f0": None, "f1": 2}], {"f0": None, "f1": 2}]


@pytest.mark.parametrize("encode", [render, walk])
def test_text_bytes_and_objects_become_strings_base64_and_themselves(encode):
    assert encode(np.array([["a", "ü"]])) == [["a", "ü"]]
    assert encode(np.array("a")) == "a"
    assert encode(np.array(["a"], np.dtypes.StringDType())) == ["a"]
    assert encode([np.array([b"\xff"]), np.bytes_(b"\xff"), np.array([b"ab"], "V2"), np.void(b"ab")]) == [
        ["/w=="], "/w==", ["YWI="], "YWI=",
    ]  # fmt: skip
    assert encode(np.array([None, {"a": np.float32(0.5)}, decimal.Decimal(2)], object)) == [
        None,
        {"a": 0.5},
        2,
    ]


@pytest.mark.parametrize("encode", [render, walk])
def test_dates_are_written_exactly_in_their_own_unit(encode):
    nanoseconds = np.array(["2021-01-01T00:00:00.123456789", "NaT"], "M8[ns]")
    assert encode(nanoseconds) == ["2021-01-01T00:00:00.123456789", None]
    assert encode(nanoseconds[0]) == "2021-01-01T00:00:00.123456789"
    assert encode({"y": np.array([["12021-01-01"]], "M8[D]")}) == {"y": [["12021-01-01"]]}
    assert encode([np.datetime64("NaT"), np.array(["NaT"], "M8"), np.array("2021", "M8[25s]")]) == [
        None, [None], "2021-01-01T00:00:00",
    ]  # fmt: skip


@pytest.mark.parametrize("encode", [render, walk])
def test_durations_become_seconds(encode):
    assert encode(np.array([1500, "NaT"], "m8[ms]")) == [1.5, None]
    assert encode([np.timedelta64(2, "W"), np.timedelta64("NaT"), np.array(1, "m8[90m]")]) == [
        1_209_600,
        None,
        5400,
    ]
    with pytest.raises(UnserializableError, match=r"^\$\.t: .*Y has no fixed length"):
        encode({"t": np.array([1], "m8[Y]")})


def _torch_dtypes():
    kinds = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    without_numbers = re.compile(r"torch\.(complex|q|bits|float4|u?int[1-7]$)")
    return sorted((kind for kind in kinds if not without_numbers.match(str(kind))), key=str)


@pytest.mark.parametrize("dtype", _torch_dtypes(), ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "0-d", "empty"])
@pytest.mark.parametrize("encode", [render, walk])
def test_every_tensor_reads_back_as_the_same_numbers(encode, dtype, layout):
    tensor = torch.tensor([[0.5, 1, 2], [4, 1, 0.5]]).to(dtype)
    tensor = {
        "contiguous": tensor, "transposed": tensor.T, "strided": tensor[:, ::2], "0-d": tensor[1, 1],
        "empty": tensor[:0],
    }[layout]  # fmt: skip
    plain = encode({"y": tensor})["y"]
    assert plain == tensor.double().tolist()


@pytest.mark.parametrize("encode", [render, walk])
def test_tensors_may_require_gradients_or_be_lazy_views(encode):
    parameter = torch.nn.Parameter(torch.tensor([[1.5]]))
    negative = torch.tensor([1 + 2j]).conj().imag
    assert negative.is_neg()
    assert encode([parameter, parameter * 2, negative]) == [[[1.5]], [[3.0]], [-2.0]]
    assert encode(torch.tensor([torch.nan], dtype=torch.bfloat16)) == [None]


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (np.array([1j]), "return .real and .imag"),
        (np.complex64(1), "return .real and .imag"),
        (1j, "return .real and .imag"),
        (torch.tensor([1j]).conj(), "return .real and .imag"),
        (torch.eye(2).to_sparse(), r"call .to_dense\(\) first"),
        (torch.eye(2, device="meta"), "meta tensor has no values"),
        (
            torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
            r"call .unbind\(\)",
        ),
        (
            type("Odd", (), {"__array__": lambda _self, *_args, **_options: 1 / 0})(),
            "Odd cannot be read as an array",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:.*prototype.*:UserWarning")
def test_what_has_no_plain_numbers_is_refused_with_its_path_and_a_fix(value, fix):
    with pytest.raises(UnserializableError, match=r"^\$\.scores\[3\]\.embedding: .*" + fix):
        ORJSONResponse({"scores": [0, 1, 2, {"embedding": value}]})


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint2"])
@pytest.mark.parametrize("encode", [render, walk])
def test_dtypes_registered_by_other_libraries_are_converted(encode, name):
    array = np.array([[0, 1]]).astype(getattr(ml_dtypes, name))
    assert encode([array, array.T, array[0, 1]]) == [[[0, 1]], [[0], [1]], 1]


@pytest.mark.parametrize("encode", [render, walk])
def test_columns_of_dataframe_libraries_keep_integers_and_nulls(encode):
    big = 2**60 + 1
    columns = [
        pd.Series([big, None], dtype="Int64"),
        pl.Series([big, None]),
        pa.array([big, None]),
        pa.chunked_array([[big], [None]]),
    ]
    assert encode(columns) == [[big, None]] * 4
    times = [pd.Series(pd.to_datetime(["2021-01-01", None])), pd.Timestamp(0, tz="UTC"), pd.NaT, pd.NA]
    assert encode(times)[1:] == ["1970-01-01T00:00:00+00:00", None, None]


def test_columns_of_the_same_name_are_refused():
    for frame in (
        pd.DataFrame(np.eye(2), columns=["a", "a"]),
        pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]),
    ):
        with pytest.raises(UnserializableError, match=r"^\$\.y: columns of the same name"):
            render({"y": frame})


def test_structures_and_levels_keep_their_names():
    assert render(pl.Series([{"a": 1}, {"a": None}])) == [{"a": 1}, {"a": None}]
    assert render(pd.MultiIndex.from_tuples([(1, "x"), (2, "y")])) == [[1, "x"], [2, "y"]]


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, pa.table])
def test_data_frames_become_columns(frame):
    columns = {"age": [1, 2], "city": ["Bonn", "Köln"]}
    assert render(frame(columns)) == columns


class ByInterface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class ByDLPack:
    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("encode", [render, walk])
def test_strangers_are_read_by_protocol(encode):
    array = np.array([[1.5, 2.5]])
    assert encode([ByInterface(array), ByDLPack(torch.from_numpy(array))]) == [[[1.5, 2.5]]] * 2


def test_no_array_library_is_imported_for_values_that_come_from_none():
    program = (
        "import sys\n"
        "from asgi_mlperf.wire import ORJSONResponse\n"
        "ORJSONResponse({'a': [1, 2.5, None, {1, 2}], 1: b'x'})\n"
        "assert not {'numpy', 'torch', 'fastapi', 'pandas', 'pyarrow', 'msgspec'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
