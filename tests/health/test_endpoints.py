from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.support import call

from asgi_mlperf import PerfMiddleware, Plugin, Settings
from asgi_mlperf.runtime.health import Health
from asgi_mlperf.runtime.process import process_of


async def asked(app, path: str) -> tuple[int, list[str]]:
    answer = await call(app, path)
    return answer.status, json.loads(answer.body)["reasons"]


async def test_each_phase_of_a_life_has_its_answers():
    seen = {}

    async def look(phase: str) -> None:
        seen[phase] = [await asked(app, path) for path in ("/livez", "/startupz", "/readyz")]

    @asynccontextmanager
    async def own(_app):
        await look("start")
        yield
        await look("end")

    plugin = Plugin()
    plugin.warmup(lambda: look("warm-up"))
    app = PerfMiddleware(Starlette(), plugin)
    async with plugin.wrap(own)(Starlette()):
        await look("serving")
    fine = (200, [])
    assert seen == {
        "start": [fine, (503, ["starting"]), (503, ["starting"])],
        "warm-up": [fine, (503, ["warming up"]), (503, ["warming up"])],
        "serving": [fine, fine, fine],
        "end": [fine, fine, (503, ["draining"])],
    }


async def test_an_open_memory_valve_turns_readiness_off_and_an_overdue_collection_does_not():
    process = await process_of(Settings())
    health = Health(process, [])
    for reason, expected in ((None, 0), ("overdue", 0), ("memory", 1)):
        process.pauses.state.valve_open_for = reason
        assert len(health.valve()) == expected


async def test_the_paths_are_settings():
    paths = {"live_path": "/l", "ready_path": "/r", "startup_path": "/s"}
    plugin, app = Plugin(Settings(health=paths)), Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        assert [(await call(app, path)).status for path in paths.values()] == [200, 200, 200]
        assert (await call(app, "/startupz")).status == 404


@pytest.mark.parametrize("path", ["/livez", "/startupz", "/readyz"])
def test_an_apps_own_route_of_that_path_stays(path):
    async def own(request):
        return PlainTextResponse("own")

    app = Starlette(routes=[Route(path, own)])
    Plugin().install(app)
    with TestClient(app) as client:
        assert client.get(path).text == "own"
