"""The second request to an endpoint goes past the app's router; nothing else about it may differ."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any

import numpy as np
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Host, Match, Mount, Route, Router
from tests.support import Answer, http_scope, left_to_collect

from asgi_mlperf import ORJSONResponse, PerfMiddleware, Plugin, route_cache
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import ORJSONRoute, parsed

pytestmark = pytest.mark.usefixtures("collector_as_found")


@pytest.fixture
def anyio_backend():
    """One event loop: nothing here is about loops."""
    return "asyncio"


row = ArrayBody(np.float32, "2")
Pair = Annotated[NDArray[np.float32], parsed(row)]
RIGHT, WRONG = b"[1, 2]", b"[1]"


@pytest.fixture
def routed(monkeypatch) -> list[str]:
    """The paths of the requests that went the app's own way from now on; errors go part of it."""
    seen: list[str] = []

    def counted(app, conn):
        seen.append(conn.scope["path"])
        return wrap_app_handling_exceptions(app, conn)

    monkeypatch.setattr("starlette.middleware.exceptions.wrap_app_handling_exceptions", counted)
    return seen


def fail(kind, *about):
    raise kind(*about)  # kept by no frame: what is left of it would be this one's doing


async def late():
    raise LookupError("late")


class Breaks(Response):
    """Begins, and raises."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise self.error


RESULTS: dict[str, Any] = {
    "array": lambda x: x * 2,
    "object": lambda x: {"x": x},
    "response": lambda x: JSONResponse(x.tolist(), 201),
    "http": lambda _: fail(HTTPException, 418, "tea"),
    "status": lambda _: fail(HTTPException, 410, "gone"),
    "handled": lambda _: fail(LookupError, "lost"),
    "handled twice": lambda _: fail(KeyError, "first"),
    "unhandled": lambda _: fail(ValueError, "wrong"),
    "begun and handled": lambda _: Breaks(LookupError("broken")),
    "begun and unhandled": lambda _: Breaks(ValueError("broken")),
    "in the background": lambda _: ORJSONResponse([1], background=BackgroundTask(late)),
}


def worth_comparing(scope):
    """What is in a scope for exception handlers and outer middleware."""
    found = {
        key: value for key, value in scope.items() if key != route_cache.SCOPE_KEY and "astack" not in key
    }
    found["starlette.exception_handlers"] = [*found.get("starlette.exception_handlers", ())]
    return found


async def own(request, error):
    scope = worth_comparing(request.scope)
    return JSONResponse([str(error), sorted(scope), scope["path_params"], scope["path"]], 409)


def worse(request, error):
    raise LookupError("second")


async def gone(*_):
    return PlainTextResponse("no more", 404)


HANDLERS: Any = {LookupError: own, KeyError: worse, RuntimeError: own, 410: gone}
PATHS = {"starlette": "/it", "fastapi": "/it", "orjson": "/it", "included": "/v1/deep/it"}


class Notes:
    """Keeps the scopes of requests that are over."""

    def __init__(self, app, scopes):
        self.app, self.scopes = app, scopes

    async def __call__(self, scope, receive, send):
        try:
            await self.app(scope, receive, send)
        finally:
            self.scopes.append(worth_comparing(scope))


def app_of(kind, make=RESULTS["array"]):
    """An app that answers at ``PATHS[kind]`` with what ``make`` makes of a pair."""

    async def function(x):
        return make(x)

    async def endpoint(x: Pair):
        return make(x)

    if kind in {"starlette", "fastapi"}:
        routes = [Mount("/files", Router()), Route("/it", row.endpoint(function), methods=["POST"])]
        return {"starlette": Starlette, "fastapi": FastAPI}[kind](routes=routes, exception_handlers=HANDLERS)
    app = FastAPI(exception_handlers=HANDLERS)
    app.router.route_class = ORJSONRoute
    if kind == "orjson":
        app.post("/it")(endpoint)
        return app
    inner, outer = APIRouter(route_class=ORJSONRoute), APIRouter(prefix="/v1")
    inner.post("/it")(endpoint)
    outer.include_router(inner, prefix="/deep")
    app.include_router(outer)
    app.include_router(inner, prefix="/again")
    return app


def installed(app):
    """The app with the plugin, and the scopes of its requests."""
    plugin, scopes = Plugin(), []
    plugin.install(app)
    app.add_middleware(Notes, scopes=scopes)
    return plugin.lifespan(app), scopes


async def ask(app, path, body=RIGHT, method="POST", **more):
    """The messages that an app sends, and how it fails."""
    answer, unread, chain = Answer(), [body], []

    async def receive():
        return {"type": "http.request", "body": unread.pop()} if unread else {"type": "http.disconnect"}

    async def send(message):
        answer.messages.append(message)

    try:
        await app(http_scope(path, method, **more), receive, send)
    except Exception as error:  # noqa: BLE001 - what a server would see
        found: BaseException | None = error
        while found is not None:
            chain.append(repr(found))
            found = found.__cause__
    return answer.messages, chain


@pytest.mark.parametrize("body", [RIGHT, WRONG], ids=["right", "wrong"])
@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("kind", PATHS)
async def test_each_request_is_answered_as_the_first_and_as_without_the_plugin(kind, name, body):
    stock, app, path = app_of(kind, RESULTS[name]), app_of(kind, RESULTS[name]), PATHS[kind]
    expected = await ask(stock, path, body)
    running, scopes = installed(app)
    async with running:
        for _ in range(3):
            assert await ask(app, path, body) == expected
    assert scopes[0]["endpoint"]
    assert scopes[1] == scopes[2] == scopes[0]


@pytest.mark.parametrize("kind", PATHS)
async def test_the_second_request_needs_no_router(kind, routed):
    app, path = app_of(kind), PATHS[kind]
    running, _ = installed(app)
    async with running:
        for _ in range(3):
            await ask(app, path)
        assert routed == [path]
        messages, _ = await ask(app, path, method="GET")
        assert messages[0]["status"] == 405
        await ask(app, path)
        assert routed == [path, path]


async def test_an_included_router_has_a_way_for_each_of_its_paths(routed):
    app = app_of("included")
    running, scopes = installed(app)
    async with running:
        for path in ("/v1/deep/it", "/again/it") * 2:
            assert (await ask(app, path))[0][1]["body"] == b"[2.0,4.0]"
    assert routed == ["/v1/deep/it", "/again/it"]
    assert scopes[0]["fastapi"] == scopes[2]["fastapi"] != scopes[1]["fastapi"] == scopes[3]["fastapi"]


async def test_metrics_count_every_request_under_its_route(routed):
    app = app_of("included")
    running, _ = installed(app)
    async with running:
        for _ in range(3):
            await ask(app, "/v1/deep/it")
        messages, _ = await ask(app, "/metrics", method="GET")
    text = b"".join(message.get("body", b"") for message in messages).decode()
    (line,) = (line for line in text.splitlines() if "request_duration_seconds_count{" in line)
    assert 'http_route="/v1/deep/it"' in line
    assert line.endswith(" 3.0")


async def answers(app, path="/it", **more):
    """What the app says there, in brief."""
    messages, chain = await ask(app, path, **more)
    return (messages[0]["status"], messages[1]["body"]) if messages else chain


async def other(request):
    return PlainTextResponse("other")


async def another():
    return PlainTextResponse("another")


def one():
    return 1


@pytest.mark.parametrize("kind", ["starlette", "orjson"])
async def test_routes_that_change_are_asked(kind):
    app = app_of(kind)
    running, _ = installed(app)
    async with running:
        assert await answers(app) == await answers(app) == (200, b"[2.0,4.0]")
        app.router.routes.insert(0, Route("/it", other, methods=["POST"]))
        assert await answers(app) == (200, b"other")
        del app.router.routes[0]
        assert await answers(app) == await answers(app) == (200, b"[2.0,4.0]")
        app.router.routes = [each for each in app.router.routes if each.path != "/it"]
        assert (await answers(app))[0] == 404


async def test_routes_that_change_in_an_included_router_are_asked():
    app, router = FastAPI(), APIRouter(route_class=ORJSONRoute)

    @router.post("/it")
    async def endpoint(x: Pair):
        return x

    app.include_router(router)
    running, _ = installed(app)
    async with running:
        assert await answers(app) == await answers(app) == (200, b"[1.0,2.0]")
        router.routes.insert(0, APIRoute("/it", another, methods=["POST"]))
        router._mark_routes_changed()
        assert await answers(app) == (200, b"another")
        app.router.routes.clear()
        assert (await answers(app))[0] == 404


@pytest.mark.parametrize("kind", ["starlette", "orjson"])
async def test_what_is_put_around_a_route_is_called(kind):
    app, seen = app_of(kind), []
    running, _ = installed(app)
    route = app.router.routes[-1]
    inner = route.app

    async def around(scope, receive, send):
        seen.append(scope["path"])
        await inner(scope, receive, send)

    async with running:
        await ask(app, "/it")
        await ask(app, "/it")
        route.app = around
        assert await answers(app) == (200, b"[2.0,4.0]")
    assert seen == ["/it"]


@pytest.mark.parametrize("wraps", [functools.wraps, lambda _: lambda function: function])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("owner", [ExceptionMiddleware, Router, Route])
async def test_what_others_put_in_the_place_of_a_method_is_called(owner, when, wraps, monkeypatch):
    name = "matches" if owner is Route else "__call__"
    own_method, seen = getattr(owner, name), []

    @wraps(own_method)
    def watched(self, scope, *rest):
        seen.append(scope["path"])
        return own_method(self, scope, *rest)

    app = app_of("starlette")
    running, _ = installed(app)
    async with running:
        if when == "after":
            await ask(app, "/it")
            await ask(app, "/it")
        monkeypatch.setattr(owner, name, watched)
        for times in (1, 2):
            assert await answers(app) == (200, b"[2.0,4.0]")
            assert seen == ["/it"] * times


async def test_a_routes_own_matches_is_asked_each_time():
    app, seen = app_of("starlette"), []
    route = app.router.routes[-1]
    own_matches = route.matches

    def matches(scope):
        seen.append(scope["path"])
        return own_matches(scope)

    route.matches = matches
    running, _ = installed(app)
    async with running:
        for _ in range(3):
            assert await answers(app) == (200, b"[2.0,4.0]")
    assert len(seen) >= 3


async def test_middleware_inside_sees_every_request():
    app, plugin, seen = app_of("starlette"), Plugin(), []

    def inside(app):
        async def inner(scope, receive, send):
            seen.append(scope[route_cache.SCOPE_KEY])
            await app(scope, receive, send)

        return inner

    app.add_middleware(inside)
    plugin.install(app)
    async with plugin.lifespan(app):
        for _ in range(3):
            assert await answers(app) == (200, b"[2.0,4.0]")
    assert seen == [None] * 3  # there is nothing that an endpoint could enter


@pytest.mark.parametrize("asked_before", [0, 2])
async def test_a_routers_middleware_sees_every_request(asked_before):
    app, scopes = app_of("starlette"), []
    running, _ = installed(app)
    async with running:
        for _ in range(asked_before):
            await ask(app, "/it")
        app.router.middleware_stack = Notes(app.router.middleware_stack, scopes)
        for _ in range(3):
            assert await answers(app) == (200, b"[2.0,4.0]")
    assert len(scopes) == 3


class ByHeader(Route):
    """Matches by more than method and path."""

    def matches(self, scope):
        wanted = (b"x-other", b"1") in scope["headers"]
        return super().matches(scope) if wanted else (Match.NONE, {})


@pytest.mark.parametrize(
    "first",
    [
        ByHeader("/it", other, methods=["POST"]),
        Host("other", Router([Route("/it", other, methods=["POST"])])),
    ],
)
async def test_routes_that_heed_headers_are_asked_each_time(first):
    app = app_of("starlette")
    app.router.routes.insert(0, first)
    running, _ = installed(app)
    async with running:
        for _ in range(2):
            assert await answers(app) == (200, b"[2.0,4.0]")
            headers = [(b"host", b"other"), (b"x-other", b"1")]
            assert await answers(app, headers=headers) == (200, b"other")


async def test_overridden_dependencies_are_asked_from_then_on():
    app = app_of("orjson")
    running, _ = installed(app)
    async with running:
        await ask(app, "/it")
        await ask(app, "/it")
        (dependency,) = app.router.routes[-1].dependant.dependencies
        app.dependency_overrides[dependency.call] = lambda: np.array([5, 6], np.float32)
        assert await answers(app) == (200, b"[10.0,12.0]")


@pytest.mark.parametrize("kind", ["fastapi", "orjson"])
async def test_an_app_that_fastapi_observes_goes_its_own_way(kind, routed):
    app = app_of(kind)
    running, _ = installed(app)
    more: Any = {"fastapi.telemetry": object()}
    async with running:
        for _ in range(2):
            assert await answers(app, **more) == (200, b"[2.0,4.0]")
        await ask(app, "/it")
        observed = len(routed)
        await ask(app, "/it")
        assert len(routed) == observed
        await ask(app, "/it", **more)
    assert len(routed) == observed + 1


async def test_each_outer_path_has_a_way_of_its_own(routed):
    app = app_of("orjson", lambda x: x)
    running, scopes = installed(app)
    async with running:
        for outer in ("/api", "/api", "", "", "/api"):
            assert await answers(app, path=outer + "/it", root_path=outer) == (200, b"[1.0,2.0]")
        assert routed == ["/api/it", "/it"]
        assert (await answers(app, path="/api/it"))[0] == 404
    assert [scope["root_path"] for scope in scopes] == ["/api", "/api", "", "", "/api", ""]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_mounted_app_is_found_by_the_router_around_it(prefix, routed):
    app = app_of("orjson")
    running, _ = installed(app)
    outer = Starlette(routes=[Mount(prefix, app)])
    async with running:
        for _ in range(3):
            assert await answers(outer, path=prefix + "/it") == (200, b"[2.0,4.0]")
    assert len(routed) == 6


@pytest.mark.parametrize("outer", [Mount, Host])
async def test_a_scope_names_the_router_that_saw_it_first(outer):
    app = app_of("fastapi")
    running, scopes = installed(app)
    around = Starlette(routes=[outer("" if outer is Mount else "test", app)])
    async with running:
        for asked in (around, around, app, app, around):
            assert await answers(asked) == (200, b"[2.0,4.0]")
    routers = [around.router, around.router, app.router, app.router, around.router]
    assert [scope["router"] for scope in scopes] == routers


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_an_app_inside_keeps_its_middleware(prefix):
    inner, scopes = app_of("orjson"), []
    inner.add_middleware(Notes, scopes=scopes)
    app = FastAPI()
    app.mount(prefix, inner)
    app.include_router(inner.router)  # the same route, and not the one that is taken
    running, _ = installed(app)
    async with running:
        for _ in range(3):
            assert await answers(app, path=prefix + "/it") == (200, b"[2.0,4.0]")
    assert len(scopes) == 3


async def test_only_constant_paths_are_learned_and_not_without_end(monkeypatch, routed):
    async def function(x):
        return x

    paths = [f"/{number}" for number in range(5)]
    routes = [Route(path, row.endpoint(function), methods=["POST"]) for path in [*paths, "/any/{name}"]]
    app = Starlette(routes=routes)
    running, _ = installed(app)
    monkeypatch.setattr(route_cache, "_AT_MOST", 3)
    async with running:
        for path in [*paths, "/any/a", "/any/b"] * 2:
            assert await answers(app, path=path) == (200, b"[1.0,2.0]")
    assert routed == [*paths, "/any/a", "/any/b", "/3", "/4", "/any/a", "/any/b"]


async def test_a_function_that_takes_more_is_asked_fastapis_way(routed):
    app = FastAPI()
    app.router.route_class = ORJSONRoute

    @app.post("/it")
    async def endpoint(x: Pair, plus: Annotated[int, Depends(one)]):
        return x + plus

    running, _ = installed(app)
    async with running:
        for _ in range(3):
            assert await answers(app) == (200, b"[2.0,3.0]")
    assert len(routed) == 3


class Guard:
    """Lets those in who have a key."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        allowed = (b"x-key", b"1") in scope["headers"]
        await (self.app if allowed else PlainTextResponse("no key", 403))(scope, receive, send)


class Guarded(ORJSONRoute):
    def handle(self, scope, receive, send):
        return Guard(super().handle)(scope, receive, send)


def own_kind():
    app = FastAPI()
    app.router.route_class = Guarded

    @app.post("/it")
    async def endpoint(x: Pair):
        return x * 2

    return app


def kind_in_an_included_router():
    app, router = FastAPI(), APIRouter(route_class=Guarded)

    @router.post("/it")
    async def endpoint(x: Pair):
        return x * 2

    app.include_router(router)
    return app


class GuardedRoute(Route):
    async def handle(self, scope, receive, send):
        await Guard(super().handle)(scope, receive, send)


def own_kind_of_starlettes():
    async def function(x):
        return x * 2

    return Starlette(routes=[GuardedRoute("/it", row.endpoint(function), methods=["POST"])])


async def test_a_mount_in_an_included_router_is_not_passed_by():
    app, outer, inner, leaf = FastAPI(), APIRouter(), APIRouter(), APIRouter(route_class=ORJSONRoute)

    @leaf.post("/it")
    async def endpoint(x: Pair):
        return x * 2

    inner.include_router(leaf, prefix="/v1")
    outer.routes.append(Mount("", Guard(inner)))
    app.include_router(outer, prefix="/v1")
    running, _ = installed(app)
    async with running:
        for _ in range(2):
            assert await answers(app, "/v1/v1/it") == (403, b"no key")
            assert await answers(app, "/v1/v1/it", headers=[(b"x-key", b"1")]) == (200, b"[2.0,4.0]")
        assert await answers(app, "/v1/v1/it", root_path="/v1") == (403, b"no key")


def in_place_of_handle(kind):
    app = app_of(kind)
    app.router.routes[-1].handle = Guard(app.router.routes[-1].handle)
    return app


def around_a_route_that_is_included_elsewhere(*, included):
    app, inner = FastAPI(), APIRouter(route_class=ORJSONRoute)

    @inner.post("/it")
    async def endpoint(x: Pair):
        return x * 2

    router = APIRouter() if included else app.router
    router.routes.append(Route("/it", Guard(inner), methods=["POST"]))
    if included:
        app.include_router(router)
    app.include_router(inner, prefix="/elsewhere")
    return app


GUARDED = {
    "a kind of route": own_kind,
    "a kind of Starlette's route": own_kind_of_starlettes,
    "a kind of route in an included router": kind_in_an_included_router,
    "handle of Starlette's": lambda: in_place_of_handle("starlette"),
    "handle of ORJSONRoute's": lambda: in_place_of_handle("orjson"),
    "an app in a route": lambda: around_a_route_that_is_included_elsewhere(included=False),
    "an app in a route of an included router": lambda: around_a_route_that_is_included_elsewhere(
        included=True
    ),
}


@pytest.mark.parametrize("guard", GUARDED)
async def test_who_guards_a_route_is_asked_each_time(guard):
    app = GUARDED[guard]()
    running, _ = installed(app)
    async with running:
        for _ in range(2):
            assert await answers(app) == (403, b"no key")
            for _ in range(2):
                assert await answers(app, headers=[(b"x-key", b"1")]) == (200, b"[2.0,4.0]")


@pytest.mark.parametrize("kind", ["starlette", "orjson", "included"])
async def test_what_later_stands_in_the_place_of_handle_is_called(kind):
    app, path = app_of(kind), "/again/it" if kind == "included" else PATHS[kind]
    running, _ = installed(app)
    async with running:
        assert await answers(app, path) == await answers(app, path) == (200, b"[2.0,4.0]")
        app.router.routes[-1].handle = Guard(app.router.routes[-1].handle)
        assert await answers(app, path) == (403, b"no key")


@pytest.mark.parametrize("kind", ["starlette", "orjson"])
async def test_methods_that_a_route_loses_are_refused(kind):
    app = app_of(kind)
    running, _ = installed(app)
    async with running:
        assert await answers(app) == await answers(app) == (200, b"[2.0,4.0]")
        app.router.routes[-1].methods = {"PUT"}
        assert (await answers(app))[0] == 405


async def test_an_equal_route_takes_the_place_of_another():
    app = app_of("starlette")
    routes = app.router.routes
    running, _ = installed(app)
    async with running:
        assert await answers(app) == await answers(app) == (200, b"[2.0,4.0]")
        guarded = Route("/it", routes[-1].endpoint, methods=["POST"], middleware=[Middleware(Guard)])
        assert guarded == routes[-1]
        routes[-1] = guarded
        assert await answers(app) == (403, b"no key")


async def test_what_an_included_router_says_of_its_routes_later_holds():
    app, router = FastAPI(), APIRouter(route_class=ORJSONRoute)

    @router.post("/it")
    async def endpoint(x: Pair):
        return x * 2

    async def refuse():
        raise HTTPException(403, "no key")

    app.include_router(router)
    running, _ = installed(app)
    async with running:
        assert await answers(app) == await answers(app) == (200, b"[2.0,4.0]")
        vars(router.routes[0])["dependencies"].append(Depends(refuse))
        router._mark_routes_changed()
        assert (await answers(app))[0] == 403


def middleware_of(app, kind):
    found = app.middleware_stack
    while not isinstance(found, kind):
        found = found.app
    return found


async def test_what_takes_the_place_of_the_router_is_called():
    app = app_of("fastapi")
    running, _ = installed(app)
    async with running:
        assert await answers(app) == await answers(app) == (200, b"[2.0,4.0]")
        exceptions = middleware_of(app, ExceptionMiddleware)
        exceptions.app = Guard(exceptions.app)
        assert await answers(app) == (403, b"no key")


async def test_an_endpoint_that_no_route_leads_to_answers_too():
    async def function(x):
        return x

    endpoint = row.endpoint(function)
    app, bare = Starlette(), Plugin()
    app.router.default = endpoint
    running, _ = installed(app)
    async with running, bare.lifespan(Starlette()):
        for _ in range(2):
            assert await answers(app) == (200, b"[1.0,2.0]")
            assert await answers(PerfMiddleware(endpoint, bare)) == (200, b"[1.0,2.0]")


async def test_methods_that_clients_invent_are_not_kept():
    async def function(x):
        return x

    app = Starlette(routes=[Route("/it", row.endpoint(function))])
    running, _ = installed(app)
    async with running:
        for number in range(20):
            assert await answers(app, method=f"M{number}") == (200, b"[1.0,2.0]")
        assert await answers(app, method="PUT") == (200, b"[1.0,2.0]")
        cache = middleware_of(app, PerfMiddleware)._cache
    assert {path: set(methods) for path, methods in cache.paths.items()} == {"/it": {"PUT"}}


async def test_no_request_shares_a_dictionary_with_another():
    app, router = FastAPI(), APIRouter(route_class=ORJSONRoute)

    @router.post("/it")
    async def endpoint(x: Pair):
        return x

    app.include_router(APIRouter(routes=[Route("/none", other)]))
    app.router.routes.append(router.routes[0])
    running, scopes = installed(app)
    async with running:
        for number in range(4):
            assert await answers(app) == (200, b"[1.0,2.0]")
            assert [scopes[number][key] for key in ("fastapi", "path_params")] == [{}, {}]
            scopes[number]["fastapi"]["left"] = scopes[number]["path_params"]["left"] = number


async def test_what_no_longer_hinders_is_noticed(routed):
    app = app_of("starlette")
    own_route = app.router.routes[-1]
    app.router.routes[-1] = GuardedRoute("/it", own_route.endpoint, methods=["POST"])
    running, _ = installed(app)
    async with running:
        for _ in range(2):
            await ask(app, "/it", headers=[(b"x-key", b"1")])
        app.router.routes[-1] = own_route
        for _ in range(3):
            await ask(app, "/it")
    assert len(routed) == 3


async def test_paths_without_end_are_not_kept(monkeypatch):
    async def function(x):
        return x

    endpoint = row.endpoint(function)
    app = Starlette(routes=[Route("/a", endpoint), Route("/b", endpoint)])
    vars(app.router.routes[0])["path_regex"] = re.compile("^/[0-9]+$")
    vars(app.router.routes[1])["path_regex"] = re.compile("^/[a-z]+$")
    vars(app.router.routes[1])["app"] = Guard(endpoint)
    running, _ = installed(app)
    monkeypatch.setattr(route_cache, "_AT_MOST", 3)
    async with running:
        for letter in "abcde":
            assert await answers(app, path=f"/{letter}", headers=[(b"x-key", b"1")]) == (200, b"[1.0,2.0]")
        for number in range(5):
            assert await answers(app, path=f"/{number}") == (200, b"[1.0,2.0]")
        cache = middleware_of(app, PerfMiddleware)._cache
    assert (len(cache.paths), len(cache._refused)) == (0, 3)


class Proxied:
    """Stands for a method, and gives a new object each time it is looked at."""

    def __init__(self, method):
        self.method = method

    def __get__(self, instance, owner=None):
        return functools.partial(self.method, instance)


async def test_routes_are_not_read_anew_for_each_request(monkeypatch):
    read, own_snapshot = [], route_cache._snapshot

    def counted(app):
        read.append(app)
        return own_snapshot(app)

    monkeypatch.setattr(route_cache, "_snapshot", counted)
    monkeypatch.setattr(Mount, "handle", Proxied(Mount.handle))
    app = app_of("starlette")
    running, _ = installed(app)
    async with running:
        for _ in range(4):
            assert await answers(app) == (200, b"[2.0,4.0]")
    assert len(read) == 1


@pytest.mark.parametrize("kind", ["starlette", "orjson"])
async def test_an_error_leaves_no_reference_cycle(kind):
    app = app_of(kind, RESULTS["unhandled"])
    plugin = Plugin()
    plugin.install(app)
    app.middleware_stack = app.build_middleware_stack().app  # without ServerErrorMiddleware, which answers
    async with plugin.lifespan(app):
        left, before = await left_to_collect(app, RIGHT, ValueError)
    assert left == before
