"""How the metrics are served: formats, sharing, protection, a port of their own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import random
import socket
import sys
import threading

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from tests.support import call, until

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.telemetry.exposition import Exposition
from asgi_mlperf.telemetry.rendering import Page, Renderer, Wanted
from asgi_mlperf.telemetry.settings import MetricsSettings
from asgi_mlperf.telemetry.turns import short_turns


def installed(**settings) -> tuple[Plugin, Starlette]:
    plugin, app = Plugin(Settings(**settings)), Starlette()
    plugin.install(app)
    return plugin, app


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("", False), ("br", False), ("gzip;q=0", False)],
)
async def test_a_page_is_compressed_for_who_takes_it(accept_encoding, compressed):
    plugin, app = installed()
    async with plugin.lifespan(app):
        answer = await call(app, "/metrics", headers=[(b"accept-encoding", accept_encoding.encode())])
    assert (answer.headers.get("content-encoding") == "gzip") == compressed
    body = gzip.decompress(answer.body) if compressed else answer.body
    assert b"http_server_active_requests" in body


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer secret", 200), ("bearer secret", 200), ("Bearer other", 401), ("Basic secret", 401), ("", 401)],
)
async def test_a_token_keeps_strangers_out(authorization, status):
    plugin, app = installed(metrics={"token": "secret"})
    async with plugin.lifespan(app):
        answer = await call(app, "/metrics", headers=[(b"authorization", authorization.encode())])
    assert answer.status == status
    assert (b"http_server" in answer.body) == (status == 200)


def test_the_token_is_not_shown_with_the_settings(monkeypatch, capsys):
    from asgi_mlperf.cli import main

    monkeypatch.setenv("ASGI_MLPERF_METRICS__TOKEN", "secret")
    for more in ([], ["--json"]):
        main(["config", *more])
        assert "secret" not in capsys.readouterr().out


def test_an_empty_token_is_refused():
    with pytest.raises(ConfigurationError, match="TOKEN"):
        Settings(metrics={"token": ""})


class SlowRenderer:
    """Renders when it is told to, and counts."""

    def __init__(self):
        self.renderings = 0
        self.gate = threading.Semaphore(0)

    def page(self, wanted):
        self.gate.acquire()
        self.renderings += 1
        return Page(b"page %d" % self.renderings, {})


async def test_scrapers_that_come_while_a_page_is_rendered_share_the_next_one():
    renderer = SlowRenderer()
    app = Exposition(renderer, token=None)
    first = asyncio.create_task(call(app, "/metrics"))
    await until(lambda: app._turn.locked() and not app._next)
    others = [asyncio.create_task(call(app, "/metrics")) for _ in range(20)]
    await until(lambda: app._next)
    others[0].cancel()
    renderer.gate.release(2)
    assert (await first).body == b"page 1"
    answers = await asyncio.gather(*others, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {answer.body for answer in answers[1:]} == {b"page 2"}
    assert renderer.renderings == 2


async def test_a_page_that_cannot_be_rendered_fails_its_scrape_and_no_other():
    class Broken:
        def page(self, wanted):
            raise RuntimeError("a collector broke")

    app = Exposition(Broken(), token=None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a collector broke"):
            await call(app, "/metrics")
    assert app._next == {}


def test_a_page_is_kept_for_other_scrapers_as_long_as_is_set():
    registry, now = CollectorRegistry(), [100.0]
    things = Counter("things", "Things.", registry=registry)
    settings = MetricsSettings(cache_ms=500, default_registry=False)
    renderer = Renderer(settings, registry, clock=lambda: now[0])
    wanted = Wanted.of("", "")
    pages = []
    for moment in (100.0, 100.4, 100.5):
        now[0] = moment
        pages.append(renderer.page(wanted).body)
        things.inc()
    assert b"things_total 0.0" in pages[0]
    assert pages[1] == pages[0]
    assert b"things_total 2.0" in pages[2]


def free_ports(count: int) -> int:
    """Return the first of ``count`` free ports in a row, from below those that systems give to clients."""
    while True:
        first = random.randrange(12_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def fetched(port: int, path: str = "/metrics", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def test_a_port_of_their_own_serves_the_metrics_and_the_apps_port_no_longer_does():
    port = free_ports(1)
    plugin, app = installed(metrics={"port": port, "host": "127.0.0.1", "token": "secret"})
    async with plugin.lifespan(app):
        assert (await call(app, "/metrics")).status == 404
        # From the event loop itself, which cannot turn meanwhile: it need not.
        status, body = fetched(port, authorization="Bearer secret")
        assert (status, b"http_server_active_requests" in body) == (200, True)
        assert fetched(port)[0] == 401
        assert fetched(port, "/other")[0] == 404
        assert (
            fetched(port, authorization="Bearer secret", **{"accept-encoding": "gzip"})[1][:2] == b"\x1f\x8b"
        )
    with pytest.raises(OSError):  # noqa: PT011 - refused, however the system says it
        fetched(port)


async def test_workers_take_ports_one_after_the_other_and_one_too_many_says_so(caplog):
    port = free_ports(2)
    settings = {"metrics": {"port": port, "host": "127.0.0.1"}, "workers": 2}
    (one, app_one), (two, app_two), (three, app_three) = (installed(**settings) for _ in range(3))
    async with one.lifespan(app_one), two.lifespan(app_two):
        taken = [candidate for candidate in (port, port + 1) if fetched(candidate)[0] == 200]
        assert taken == [port, port + 1]
        async with three.lifespan(app_three):
            assert "no metrics port for this worker" in caplog.text
            assert (await call(app_three, "/readyz")).status == 200


async def test_what_the_worker_may_use_and_does_use_is_shown():
    plugin, app = installed(threads={"cpus": 3}, workers=1)
    async with plugin.lifespan(app):
        lines = (await call(app, "/metrics")).body.decode().splitlines()
    shown = dict(line.rsplit(" ", 1) for line in lines if line.startswith("asgi_mlperf_"))
    assert shown["asgi_mlperf_cpu_budget_cores"] == "3.0"
    assert shown["asgi_mlperf_ready"] == "1.0"
    assert float(shown["asgi_mlperf_memory_rss_bytes"]) > 10_000_000


def test_turns_are_short_until_the_last_of_several_has_left():
    found = sys.getswitchinterval()
    with short_turns():
        with short_turns():
            short = sys.getswitchinterval()
        assert sys.getswitchinterval() == short < found
    assert sys.getswitchinterval() == found


def test_turns_that_somebody_else_set_meanwhile_stay():
    found = sys.getswitchinterval()
    try:
        with short_turns():
            sys.setswitchinterval(0.05)
        assert sys.getswitchinterval() == pytest.approx(0.05)
    finally:
        sys.setswitchinterval(found)
