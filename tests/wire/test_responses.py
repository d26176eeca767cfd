import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import math
import pathlib
import types
import uuid
from typing import Any

import attrs
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from starlette.testclient import TestClient

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import JSONSettings, ORJSONResponse, json_settings
from asgi_mlperf.wire.exact import Walk

POLICIES = [{}, {"nan": "string"}, {"float_digits": 17}]


def render(value, **settings) -> Any:
    token = json_settings.set(JSONSettings(**settings))
    try:
        return json.loads(bytes(ORJSONResponse(value).body))
    finally:
        json_settings.reset(token)


def walk(value) -> Any:
    return json.loads(b"".join(Walk(JSONSettings()).texts(value)))


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Name(str, enum.Enum):  # noqa: UP042 - what users still have
    ANN = "ann"


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - what users still have


@dataclasses.dataclass
class Box:
    size: Any
    _hidden: int = 2

    @functools.cached_property
    def area(self):
        return 3


@attrs.define
class Shape:
    size: Any


class Struct(msgspec.Struct, rename="camel", tag=True):
    my_size: Any


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    my_size: Any = pydantic.Field(alias="mySize")
    score: float = 1.0

    @pydantic.field_serializer("score")
    def as_percent(self, score: float) -> float:
        return score * 100


class Constants(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_inf_nan="constants")
    x: float


BOX = Box(np.float32(0.1))
assert BOX.area == 3
UTC = dt.UTC

VALUES = [
    (Point(1, np.int8(2)), [1, 2]),
    ({1}, [1]),
    (frozenset({"a"}), ["a"]),
    (collections.deque([1, {2}]), [1, [2]]),
    (range(3), [0, 1, 2]),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    ([np.longlong(-5), np.ulonglong(5), np.array(5, "q")], [-5, 5, 5]),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (collections.UserDict(a=1), {"a": 1}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (decimal.Decimal("0.1"), 0.1),
    (decimal.Decimal("NaN"), None),
    (decimal.Decimal("sNaN"), None),
    (decimal.Decimal("-Infinity"), None),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (b"\xff\x00", "/wA="),
    (bytearray(b"\xff"), "/w=="),
    (memoryview(b"abcd")[::2], "YWM="),
    (Colour.RED, "red"),
    (Colour.PAIR, [1, 2]),
    (Level.LOW, 1),
    (Name.ANN, "ann"),
    (BOX, {"size": 0.1, "_hidden": 2}),
    (Shape({1}), {"size": [1]}),
    (Struct(np.array([1.5])), {"type": "Struct", "mySize": [1.5]}),
    (Struct({np.int64(3): Struct(1)}), {"type": "Struct", "mySize": {"3": {"type": "Struct", "mySize": 1}}}),
    (Model(mySize=np.array([0.1], "f4")), {"mySize": [0.1], "score": 100}),
    (Model(mySize=[BOX, math.nan]), {"mySize": [{"size": 0.1, "_hidden": 2}, None], "score": 100}),
    (Model(mySize={np.int64(1): Colour.RED}), {"mySize": {"1": "red"}, "score": 100}),
    (Model(mySize="NaN", score=math.inf), {"mySize": "NaN", "score": None}),
    (Constants(x=math.nan), {"x": None}),
    (Model(mySize=[Constants(x=-math.inf)]), {"mySize": [{"x": None}], "score": 100}),
    (2**64, 2**64),
    (-(2**70), -(2**70)),
    (np.uint64(2**64 - 1), 2**64 - 1),
    ("\ud800", "\ud800"),
    (dt.timedelta(milliseconds=1500), 1.5),
    (dt.datetime(2020, 1, 2, tzinfo=UTC), "2020-01-02T00:00:00+00:00"),
    (dt.time(1, tzinfo=UTC), "01:00:00+00:00"),
    (dt.date(2020, 1, 2), "2020-01-02"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pydantic.SecretStr("a"), "**********"),
    (math.nan, None),
    ([-math.inf, np.float64("nan")], [None, None]),
    (type("Mine", (float,), {})(1.5), 1.5),
    (type("Mine", (str,), {})("a"), "a"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "plain"), VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("encode", [render, walk])
def test_what_surrounds_arrays_is_written_the_same_everywhere(encode, value, plain):
    box = np.empty(1, dtype=object)
    box[0] = value
    nested = {"alone": value, "in a list": [{"a": value}], "in a dataclass": Box(value), "in an array": box}
    assert {place: encode(content) for place, content in nested.items()} == {
        "alone": plain,
        "in a list": [{"a": plain}],
        "in a dataclass": {"size": plain, "_hidden": 2},
        "in an array": [plain],
    }


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_settings_change_floats_and_nothing_else(policy):
    values = [
        (value, plain) for value, plain in VALUES if "NaN" not in f"{value}" and "None" not in f"{plain}"
    ]
    assert render([value for value, _ in values], **policy) == [plain for _, plain in values]


def test_decimals_keep_every_digit():
    assert ORJSONResponse([decimal.Decimal("0.1000000000000000000001")]).body == b"[0.1000000000000000000001]"


KEYS = [
    1, 2**70, 1.5, 1e16, math.nan, -math.inf, True, None, "a", Level.LOW, type("Mine", (str,), {})("a"),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_are_spelled_as_the_standard_library_spells_them(key):
    assert list(render({"outer": {key: 1}})["outer"]) == list(json.loads(json.dumps({key: 1})))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (np.int64(3), "3"), (np.uint8(3), "3"), (np.float32(0.1), "0.1"), (np.bool_(True), "true"),
        (np.str_("a"), "a"), (np.float64("nan"), "NaN"), (np.float16("inf"), "Infinity"), (Colour.RED, "red"),
        (uuid.UUID(int=0), str(uuid.UUID(int=0))), (dt.date(2020, 1, 2), "2020-01-02"),
        (np.datetime64("2020"), "2020"), (pathlib.PurePosixPath("a"), "a"), (decimal.Decimal("0.10"), "0.10"),
        (b"\xff", "/w=="), ("\ud800", "\ud800"),
    ],
    ids=repr,
)  # fmt: skip
def test_other_keys_are_spelled_as_their_values_are(key, text):
    assert render({"outer": {key: 1}}) == {"outer": {text: 1}}


def test_depth_is_bounded_by_memory_alone():
    deep: Any = np.float32(1)
    for _ in range(50_000):
        deep = [deep]
    assert ORJSONResponse(deep).body == b"[" * 50_000 + b"1.0" + b"]" * 50_000


def _circle(kind) -> Any:
    inside: list[Any] = []
    inside.append(kind(inside))
    return inside[0]


class Endless:
    def __array__(self, *_args: object, **_options: object) -> Any:
        box = np.empty((), dtype=object)
        box[()] = self
        return box


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a b": {"c": [1, object()]}}, r"^\$\['a b'\]\.c\[1\]: object cannot be written as JSON: turn"),
        ([{(1, 2): 3}], r"^\$\[0\]: a dict key of type tuple: JSON keys are strings"),
        ({1: [object]}, r"^\$\[1\]\[0\]: type cannot be written"),
        ([0, (x for x in "a")], r"^\$\[1\]: generator can be read only once: wrap it in list\(\)"),
        (_circle(lambda inside: inside), r"^\$\[0\]: circular reference"),
        (_circle(Box), r"^\$\.size\[0\]: circular reference"),
        (_circle(Shape), r"^\$\.size\[0\]: circular reference"),
        ([10**5000], r"^\$\[0\]: Exceeds the limit"),
        (Model(mySize=[b"\xff"]), r"^\$: Model refused: .*utf-8"),
        (Model(mySize={"a": [np.complex64(1j)]}), r"^\$\.mySize\.a\[0\]: complex64 array"),
        ([*range(5000), object()], r"^\$\[5000\]: object"),
        ([Endless()], r"^\$\[0\]: Endless never becomes a plain value"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("settings", [{}, {"nan": "string"}], ids=str)
def test_what_json_cannot_say_is_refused_with_its_path_and_a_fix(value, message, settings):
    with pytest.raises(UnserializableError, match=message):
        render(value, **settings)


NAN = {"a": [1.5, math.nan], "b": np.array([[0.1, np.inf], [1, 2]], "f4"), "c": np.float32("-inf")}


def test_nan_may_become_a_string():
    assert render(NAN, nan="string") == {
        "a": [1.5, "NaN"],
        "b": [[0.1, "Infinity"], [1, 2]],
        "c": "-Infinity",
    }


@pytest.mark.parametrize(("key", "path"), [("a", r"a\[1\]"), ("b", r"b\[0\]\[1\]"), ("c", "c")])
def test_nan_may_be_refused(key, path):
    with pytest.raises(UnserializableError, match=rf"^\$\.x\.{path}: .* is not a JSON number"):
        render({"x": {key: NAN[key]}}, nan="error")
    assert render({"x": [1.5, np.ones(2)]}, nan="error") == {"x": [1.5, [1, 1]]}


@pytest.mark.parametrize("nan", ["null", "string", "error"])
def test_masked_values_are_null_under_every_policy(nan):
    assert render(np.ma.masked_array([1.5, np.nan], mask=[False, True]), nan=nan) == [1.5, None]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


ROUNDABLE = st.floats(-1e308, 1e308)


@given(ROUNDABLE, st.integers(1, 17))
def test_rounded_floats_are_the_nearest_of_so_many_digits(number, digits):
    assert render(number, float_digits=digits) == float(f"{number:.{digits}g}")


@given(hnp.arrays("f8", st.integers(0, 5), elements=ROUNDABLE), st.integers(1, 15))
def test_rounded_arrays_are_within_half_a_digit_and_no_longer_than_asked(array, digits):
    for exact, rounded in zip(array.tolist(), render(array, float_digits=digits), strict=True):
        assert rounded == float(f"{rounded:.{digits}g}")
        half = 0.5 * 10.0 ** (math.floor(math.log10(abs(exact))) + 1 - digits) if exact else 0
        assert abs(rounded - exact) <= half + 2 * math.ulp(exact)


def test_rounding_never_makes_a_number_infinite():
    assert render([1.5e308, np.array([-1.7e308])], float_digits=1) == [1.5e308, [-1.7e308]]


def test_rounding_shortens_the_body_and_keeps_small_probabilities():
    assert render(np.array([1e-9 / 3, 123456.789, 0]), float_digits=3) == [3.33e-10, 123000, 0]
    token = json_settings.set(JSONSettings(float_digits=3))
    assert (
        ORJSONResponse([np.array([[0.12345]], "f4"), np.float32(0.12345), 0.12345]).body
        == b"[[[0.123]],0.123,0.123]"
    )
    json_settings.reset(token)


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(pydantic.ValidationError):
        JSONSettings(typo=1)  # type: ignore[call-arg] # the point of the test
    with pytest.raises(pydantic.ValidationError):
        JSONSettings(float_digits=0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(st.characters(exclude_categories=[])),
    lambda children: (
        st.lists(children)
        | st.tuples(children, children)
        | st.dictionaries(st.text() | st.integers() | FLOATS | st.booleans() | st.none(), children)
    ),
    max_leaves=30,
)


@given(JSON)
def test_whatever_the_standard_library_can_say_reads_back_the_same(value):
    expected = json.loads(json.dumps(value))
    assert render(value) == expected
    assert walk(value) == expected
    assert render(value, float_digits=17) == expected


ARRAYS = hnp.arrays(
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@given(ARRAYS, st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-2, -1, 2]))))
def test_whatever_numpy_can_hold_reads_back_the_same(array, steps):
    for axis, step in steps:
        if axis < array.ndim:
            array = array[(slice(None),) * axis + (slice(None, None, step),)].T
    finite = np.where(np.isfinite(array), array, 0).astype(array.dtype)
    nulls = json.loads(json.dumps(np.isfinite(array).tolist()))
    plain = render({"y": array})["y"]
    assert _map(lambda x: x is not None, plain) == nulls
    assert np.array_equal(
        np.array(_map(lambda x: 0 if x is None else x, plain), dtype=array.dtype).ravel(), finite.ravel()
    )
    assert walk({"y": array})["y"] == plain


def _map(function, nested) -> Any:
    return [_map(function, x) for x in nested] if isinstance(nested, list) else function(nested)


def test_a_response_is_an_app_of_its_own():
    assert TestClient(ORJSONResponse({"a": np.arange(2)})).get("/").json() == {"a": [0, 1]}
