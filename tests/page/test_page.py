from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.support import call

from asgi_mlperf import ConfigurationError, Plugin, Settings
from asgi_mlperf.cli import main
from asgi_mlperf.telemetry.page import page as page_module
from asgi_mlperf.telemetry.page.snapshot import snapshot

CSS = Path(page_module.__file__).with_name("page.css").read_text()
WITH_TOKEN = [(b"authorization", b"Bearer sesame")]


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


async def fail(request):
    return PlainTextResponse("no", 500)


@pytest.fixture
async def app():
    plugin = Plugin(Settings(page={"token": "sesame"}))
    app = Starlette(routes=[Route("/fail", fail), Route("/add", lambda _: PlainTextResponse("5"))])
    plugin.install(app)
    async with plugin.lifespan(app):
        app.state.plugin = plugin
        yield app


async def test_there_is_no_page_without_a_token():
    plugin, app = Plugin(), Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        assert [(await call(app, path)).status for path in ("/mlperf", "/mlperf/data")] == [404, 404]


@pytest.mark.parametrize("path", ["/mlperf", "/mlperf/data"])
@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (b"Bearer sesame", 200),
        (basic("anybody", "sesame"), 200),
        (basic("", "sesame"), 200),
        (b"Bearer sesam", 401),
        (b"Bearer", 401),
        (basic("sesame", "wrong"), 401),
        (b"Basic not-base64", 401),
        (b"Digest sesame", 401),
        (b"", 401),
    ],
)
async def test_the_page_and_its_figures_want_the_token(app, path, authorization, status):
    answer = await call(app, path, headers=[(b"authorization", authorization)])
    assert answer.status == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_the_page_allows_its_own_script_and_style_and_nothing_else(app):
    answer = await call(app, "/mlperf", headers=WITH_TOKEN)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert re.findall(r"(?:src|href)=\"(?!data:)", answer.body.decode()) == []


async def test_the_figures_are_those_of_this_worker(app):
    for path in ("/add", "/add", "/fail"):
        await call(app, path)
    await app.state.plugin.run(abs, -1)
    figures = json.loads((await call(app, "/mlperf/data", headers=WITH_TOKEN)).body)
    assert (figures["requests"]["count"], figures["requests"]["failed"]) == (3, 1)
    assert list(figures["routes"]) == ["/add", "/fail"]
    assert figures["routes"]["/add"]["count"] == 2
    assert figures["pools"] == {"default": {"waiting": 0, "running": 0, "refused": 0}}
    assert figures["stages"]["running"]["count"] == 1
    assert (figures["active"], figures["reasons"]) == (0, [])


def test_a_snapshot_adds_up_histograms_and_leaves_out_what_there_is_not():
    registry = CollectorRegistry()
    names = ("http_request_method", "http_route", "http_response_status_code")
    requests = Histogram(
        "http_server_request_duration_seconds", "-", names, buckets=(1, 2), registry=registry
    )
    for seconds, status in ((0.5, "200"), (1.5, "200"), (5, "503")):
        requests.labels("GET", "/", status).observe(seconds)
    Counter("asgi_mlperf_refused", "-", ("pool", "reason"), registry=registry).labels("gpu", "late").inc(2)
    Gauge("asgi_mlperf_memory_rss_bytes", "-", registry=registry).set(7)
    everything = {"le": [1, 2], "counts": [1, 2], "count": 3, "sum": 7}
    assert snapshot(registry.collect()) == {
        "requests": {**everything, "failed": 1},
        "stages": {},
        "pools": {"gpu": {"waiting": 0, "running": 0, "refused": 2}},
        "routes": {"/": everything},
        "rss": 7,
    }


def test_a_page_without_metrics_is_an_error():
    with pytest.raises(ConfigurationError, match="METRICS__ENABLED=true"):
        Settings(page={"token": "sesame"}, metrics={"enabled": False})


def test_the_pages_path_must_be_its_own():
    with pytest.raises(ConfigurationError, match="own paths must differ"):
        Settings(page={"token": "sesame", "path": "/metrics"})


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_token_is_not_shown_with_the_settings(monkeypatch, capsys, options):
    monkeypatch.setenv("ASGI_MLPERF_PAGE__TOKEN", "sesame")
    assert Settings().page.token == SecretStr("sesame")
    assert main(["config", *options]) == 0
    printed = capsys.readouterr().out
    assert "ASGI_MLPERF_PAGE__TOKEN" in printed
    assert "sesame" not in printed


def luminance(color: str) -> float:
    digits = color if len(color) == 6 else "".join(digit * 2 for digit in color)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(look):
    colors = dict(re.findall(r"--(\w+): #(\w+)", CSS.split("prefers-color-scheme: dark")[look]))
    for ground in ("paper", "card"):
        assert contrast(colors["ink"], colors[ground]) >= 7
        assert all(contrast(colors[name], colors[ground]) >= 4.5 for name in ("quiet", "good", "bad"))
    assert all(contrast(colors[name], colors["card"]) >= 3 for name in ("one", "two", "three"))
