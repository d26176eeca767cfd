import numpy as np
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from tests.support import left_to_collect

from asgi_mlperf import ORJSONResponse, Plugin
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.responses import JSONSettings, json_settings
from asgi_mlperf.wire.tables import TableBody

row = ArrayBody(np.float32, "3")


def raising(kind, *about):
    raise kind(*about)  # kept by no frame: what is left of it would be this one's doing


FUNCTIONS = {
    "array": lambda x: x * 2,
    "scalar": lambda x: x.sum(),
    "strided": lambda x: np.stack([x, x]).T,
    "nan": lambda x: x / 0,
    "heavy": lambda _: np.zeros(300_000),
    "object": lambda x: {"x": x, "n": 3},
    "none": lambda _: None,
    "response": lambda x: JSONResponse(x.tolist(), 201, {"x-a": "b"}),
    "refused": lambda _: raising(HTTPException, 418, "tea"),
    "handled": lambda _: raising(LookupError, "lost"),
    "unhandled": lambda _: raising(ValueError, "wrong"),
}


async def own(request, error):
    try:
        read = (await request.body()).decode()
    except Exception as refusal:  # noqa: BLE001 - of interest is which
        read = repr(refusal)
    return JSONResponse([str(error), request.url.path, read], 409)


def endpoint_of(name):
    async def scores(x):
        return FUNCTIONS[name](x)

    return row.endpoint(scores)


def by_hand(name):
    async def scores(request):
        found = FUNCTIONS[name](await row(request))
        return found if isinstance(found, JSONResponse) and name == "response" else ORJSONResponse(found)

    return scores


def outcome(endpoint, body):
    app = Starlette(routes=[Route("/it", endpoint, methods=["POST"])], exception_handlers={LookupError: own})
    try:
        answer = TestClient(app).post("/it", json=body)
    except Exception as error:  # noqa: BLE001 - what a server would see
        return repr(error)
    return answer.status_code, answer.headers.multi_items(), answer.content


@pytest.mark.parametrize("body", [[1, 2, 3], [1, 2]], ids=["right", "wrong"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_endpoint_answers_as_a_function_of_the_request_would(name, body):
    with np.errstate(divide="ignore"):
        assert outcome(endpoint_of(name), body) == outcome(by_hand(name), body)


@pytest.mark.parametrize("endpoint", [endpoint_of("array"), by_hand("array")])
def test_a_refusal_is_the_same_in_fastapi_and_in_starlette(endpoint):
    answers = [
        TestClient(kind(routes=[Route("/it", endpoint, methods=["POST"])])).post("/it", json=[1, 2])
        for kind in (FastAPI, Starlette)
    ]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert [answer.headers["content-type"] for answer in answers] == ["application/json"] * 2
    (detail,) = answers[0].json()["detail"]
    assert (detail["type"], detail["loc"]) == ("shape", ["body"])
    assert answers[0].json() == answers[1].json()


async def test_an_error_in_a_background_task_is_told_as_starlette_does():
    async def late():
        raise LookupError("late")

    async def scores(x):
        return ORJSONResponse(x, background=BackgroundTask(late))

    async def scores_of(request):
        return await scores(await row(request))

    app = Starlette(
        routes=[
            Route("/endpoint", row.endpoint(scores), methods=["POST"]),
            Route("/function", scores_of, methods=["POST"]),
        ],
        exception_handlers={LookupError: own, RuntimeError: own},
    )
    causes = []
    for path in ("/endpoint", "/function"):
        with pytest.raises(RuntimeError) as caught:
            TestClient(app).post(path, json=[1, 2, 3])
        error: BaseException | None = caught.value
        chain = []
        while error is not None:
            chain.append(repr(error))
            error = error.__cause__
        causes.append(chain)
    assert causes[0] == causes[1]
    assert len(causes[0]) == 3


def test_json_settings_hold_for_endpoints():
    used = JSONSettings()
    token = json_settings.set(used)
    assert outcome(endpoint_of("array"), [1.5, 1, 1])[0] == 200
    json_settings.set(used.model_copy(update={"nan": "string", "body_limit_bytes": 8}))
    try:
        with np.errstate(divide="ignore"):
            assert outcome(endpoint_of("nan"), [1, 1, 1])[2] == b'["Infinity","Infinity","Infinity"]'
        assert outcome(endpoint_of("nan"), [1.5, 1, 1])[0] == 413
    finally:
        json_settings.reset(token)


def test_an_endpoint_reads_whatever_its_body_does():
    async def ages(table):
        return table["age"] + 1

    assert outcome(TableBody({"age": np.int64}).endpoint(ages), {"age": [1, 2]})[2] == b"[2,3]"


def test_a_batched_function_is_an_endpoint_in_fastapi_and_is_measured_by_its_route():
    plugin = Plugin()

    @plugin.batched
    def doubled(rows):
        """Twice each."""
        return [row * 2 for row in rows]

    scores = Route("/scores", row.endpoint(doubled), methods=["POST"])
    app = FastAPI(routes=[scores], lifespan=plugin.lifespan)
    plugin.install(app)
    with TestClient(app) as client:
        assert client.post("/scores", json=[1, 2, 3]).json() == [2, 4, 6]
        assert client.get("/scores").status_code == 405
        text = client.get("/metrics").text
    labels = '{http_request_method="POST",http_response_status_code="200",http_route="/scores"}'
    assert f"http_server_request_duration_seconds_count{labels} 1.0" in text
    assert 'asgi_mlperf_encode_seconds_count{format="json"} 1.0' in text


def test_what_a_function_says_of_itself_holds_for_its_endpoint():
    plugin = Plugin()

    @plugin.priority("low")
    async def scores(x):
        """Sums."""
        return x.sum()

    endpoint = row.endpoint(scores)
    assert (endpoint.__name__, endpoint.__doc__, endpoint.__wrapped__) == ("scores", "Sums.", scores)
    assert vars(endpoint)["asgi_mlperf_priority"] == "low"
    assert Route("/it", endpoint).name == "scores"


def test_handlers_of_a_mounted_app_are_its_own():
    async def inner(_request, _error):
        return PlainTextResponse("inner", 409)

    mounted = Starlette(
        routes=[Route("/it", endpoint_of("handled"), methods=["POST"])],
        exception_handlers={LookupError: inner},
    )
    app = Starlette(routes=[Mount("/v1", mounted)], exception_handlers={LookupError: own})
    assert TestClient(app).post("/v1/it", json=[1, 2, 3]).text == "inner"


async def test_an_error_leaves_no_reference_cycle():
    left, before = await left_to_collect(endpoint_of("unhandled"), b"[1, 2, 3]", ValueError)
    assert left == before
