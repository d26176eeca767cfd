"""A pytest plugin (``-p everywhere``) that puts asgi-mlperf into every app that a test suite makes.

``CONFORMANCE_VARIANT`` says how; ``CONFORMANCE_REPORT`` names the file for what became of each test.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI
from starlette.applications import Starlette

from asgi_mlperf import PerfMiddleware, Plugin
from asgi_mlperf.hooks import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

_KINDS: tuple[Any, ...] = (Starlette, FastAPI)
_PLUGIN = "_conformance_plugin"

_lifespans: dict[Any, _Lifespan] = {}

outcomes: dict[str, str] = {}
failures: dict[str, str] = {}
counts = {"apps": 0, "measured": 0}


def pytest_configure() -> None:
    VARIANTS[os.environ["CONFORMANCE_VARIANT"]]()
    _count_measured_requests()


def pytest_runtest_setup() -> None:
    if os.environ["CONFORMANCE_VARIANT"] == running.__name__:
        gc.collect(1)
        gc.freeze()  # else each request, being a start of its own, collects all that the suite imported


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome: str = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    if outcome == "failed" and report.when != "call":
        outcome = "error"
    if outcome in {"error", "failed"}:
        failures[report.nodeid] = f"{failures.get(report.nodeid, '')}{report.longreprtext}\n"
    if report.when == "call" or outcome != "passed":
        outcomes[report.nodeid] = outcome


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        outcomes[report.nodeid] = f"collection {report.outcome}"
        failures[report.nodeid] = report.longreprtext


def pytest_sessionfinish() -> None:
    report = {"outcomes": outcomes, "failures": failures, "counts": counts}
    Path(os.environ["CONFORMANCE_REPORT"]).write_text(json.dumps(report, indent=1), encoding="utf-8")


def stock() -> None:
    """Change nothing."""


def installed() -> None:
    """Give every app a plugin of its own, in the one line, as soon as the app exists."""
    _after_init(lambda app: Plugin().install(app))


def installed_last() -> None:
    """Do the same when the app is complete, as recommended: the middleware is the outermost."""
    _around_call(lambda app: Plugin().install(app))


def wrapped() -> None:
    """Give every app a plugin of its own in the two lines: lifespan and middleware."""
    for kind in _KINDS:
        kind.__init__ = _with_two_lines(kind.__init__)


def shared() -> None:
    """Give all apps of the process the same plugin."""
    plugin = Plugin()
    _after_init(plugin.install)


def running() -> None:
    """Let the plugin run, too, for requests that tests send without the app's lifespan."""

    def install(app: Any) -> None:
        plugin = Plugin()
        plugin.install(app)
        setattr(app, _PLUGIN, plugin)

    _around_call(install, during=_running_plugin)
    gc.get_freeze_count = lambda: sys.maxsize  # the true one walks over every frozen object


def disabled() -> None:
    """Give every app a plugin that ``ASGI_MLPERF_ENABLED`` switches off."""
    os.environ["ASGI_MLPERF_ENABLED"] = "false"
    installed()


VARIANTS: dict[str, Callable[[], None]] = {
    variant.__name__: variant
    for variant in (stock, installed, installed_last, wrapped, shared, running, disabled)
}


def _after_init(install: Callable[[Any], None]) -> None:
    def patched(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def init(app: Any, *args: Any, **kwargs: Any) -> None:
            original(app, *args, **kwargs)
            install(app)
            counts["apps"] += 1

        return init

    for kind in _KINDS:
        kind.__init__ = patched(kind.__init__)


def _with_two_lines(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(app: Any, *args: Any, lifespan: Any = None, **kwargs: Any) -> None:
        plugin = Plugin()
        lifespan = plugin.lifespan if lifespan is None else plugin.wrap(lifespan)
        original(app, *args, lifespan=lifespan, **kwargs)
        app.add_middleware(PerfMiddleware, plugin=plugin)
        counts["apps"] += 1

    return init


@asynccontextmanager
async def _nothing(app: Any, scope: Any) -> AsyncIterator[None]:
    yield


def _around_call(install: Callable[[Any], None], during: Callable[..., Any] = _nothing) -> None:
    """Call ``install(app)`` before the app's first call, and enter ``during(app, scope)`` for each."""

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def call(app: Any, scope: Any, receive: Any, send: Any) -> None:
            if _PLUGIN not in vars(app) and app.middleware_stack is None:
                setattr(app, _PLUGIN, None)
                install(app)
                counts["apps"] += 1
            async with during(app, scope):
                await original(app, scope, receive, send)

        return call

    for kind in _KINDS:
        if "__call__" in vars(kind):
            kind.__call__ = patched(kind.__call__)


class _Lifespan:
    """A plugin that runs, without the app's own lifespan, while requests of one event loop need it.

    It runs in a task of its own, as under a server. Who waits for it looks again and again: to
    ``wait_all_tasks_blocked`` in a test, any other way of waiting would seem to happen inside the app.
    """

    def __init__(self, plugin: Plugin, app: Any) -> None:
        self.requests = 0
        self._started, self._over = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._run(plugin, app))

    async def wait_started(self) -> None:
        while not (self._started.is_set() or self._task.done()):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)

    async def end(self) -> None:
        self._over.set()
        with anyio.CancelScope(shield=True):
            while not self._task.done():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0)
        self._task.result()

    async def _run(self, plugin: Plugin, app: Any) -> None:
        async with plugin.wrap(None)(app):
            self._started.set()
            await self._over.wait()


@asynccontextmanager
async def _running_plugin(app: Any, scope: Any) -> AsyncIterator[None]:
    plugin, loop = getattr(app, _PLUGIN, None), _running_loop()
    lifespan = _lifespans.get((plugin, loop))
    if lifespan is None:
        started = plugin is None or loop is None or loop in plugin._publisher.engines
        if started or scope["type"] == "lifespan":
            yield
            return
        lifespan = _lifespans[plugin, loop] = _Lifespan(plugin, app)
    lifespan.requests += 1
    try:
        await lifespan.wait_started()
        yield
    finally:
        lifespan.requests -= 1
        if not lifespan.requests:
            del _lifespans[plugin, loop]
            await lifespan.end()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _count_measured_requests() -> None:
    exchange: Any = Exchange
    original = exchange.__init__

    def counting(*args: Any) -> None:
        counts["measured"] += 1
        original(*args)

    exchange.__init__ = counting
