from __future__ import annotations

import gc
import itertools
import signal
import threading
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from tests.conftest import process_state

from asgi_mlperf import NotRunning, Plugin, Settings

STEPS = [
    "telemetry",
    "native_threads",
    "inference",
    "published",
    "own",
    "warmed_up",
    "self_checked",
    "garbage",
    "served",
]


class Broken(Exception):
    pass


def breaking(stage, when):
    """The same stage, but it raises on its way in or out, after its own undoing."""

    @asynccontextmanager
    async def broken(*args):
        async with stage(*args) as value:
            if when == "start":
                raise Broken
            try:
                yield value
            finally:
                if when == "stop":
                    raise Broken

    return broken


@pytest.mark.parametrize(
    ("step", "when", "body_fails"),
    [
        *itertools.product(STEPS, ["start"], [False]),
        *itertools.product(STEPS, ["stop"], [False, True]),
        (None, None, True),
    ],
)
async def test_whatever_fails_everything_is_undone(monkeypatch, step, when, body_fails):
    from asgi_mlperf import runtime

    if step in STEPS[: STEPS.index("garbage")]:  # that is not under way yet, or has ended
        monkeypatch.setenv("ASGI_MLPERF_GC__MODE", "off")
    events = []

    @asynccontextmanager
    async def own(app):
        events.append("start")
        try:
            yield
        finally:
            events.append("stop")

    if step == "own":
        own = breaking(own, when)
    elif step is not None:
        monkeypatch.setattr(runtime, step, breaking(getattr(runtime, step), when))
    plugin, before, entered = Plugin(), process_state(), False
    with pytest.raises(Broken):  # noqa: PT012 - what raises differs from case to case
        async with plugin.wrap(own)(Starlette()):
            entered = True
            if body_fails:
                raise Broken
    assert entered == (when != "start")
    assert process_state() == before
    assert events in ([], ["start", "stop"])
    assert plugin.serving() is None
    with pytest.raises(NotRunning):
        await plugin.run(abs, 1)


@pytest.mark.parametrize("phase", ["start", "body", "stop"])
async def test_the_apps_own_failures_arrive_as_they_are(phase):
    error = RuntimeError("the app's own")

    @asynccontextmanager
    async def own(app):
        if phase == "start":
            raise error
        yield
        if phase == "stop":
            raise error

    with pytest.raises(RuntimeError) as caught:  # noqa: PT012 - the body is what raises
        async with Plugin().wrap(own)(Starlette()):
            if phase == "body":
                raise error
    assert caught.value is error


async def test_a_failing_warm_up_stops_the_start_and_the_apps_lifespan_is_left():
    plugin, events = Plugin(), []

    @asynccontextmanager
    async def own(app):
        yield
        events.append("left")

    @plugin.warmup
    def broken():
        raise Broken

    @asynccontextmanager
    async def leaving(app):
        try:
            async with own(app):
                yield
        finally:
            events.append("closed")

    with pytest.raises(Broken):
        async with plugin.wrap(leaving)(Starlette()):
            pytest.fail("started although the warm-up failed")
    assert events == ["closed"]


async def test_features_start_in_the_order_of_the_design():
    plugin, seen = Plugin(), {}

    def look():
        return {
            "threads": threading.Thread.start is not thread_start,
            "gc": gc.get_threshold()[2] > 10,
            "frozen": gc.get_freeze_count() > 1_000,
        }

    async def warm_up():
        seen["warm-up"] = look()

    @asynccontextmanager
    async def own(app):
        seen["app starts"] = look()
        yield
        seen["app stops"] = look()

    plugin.warmup(warm_up)
    thread_start = threading.Thread.start
    async with plugin.wrap(own)(Starlette()):
        seen["serving"] = look()
    early = {"threads": True, "gc": False, "frozen": False}
    assert seen == {
        "app starts": early,
        "warm-up": early,
        "serving": {"threads": True, "gc": True, "frozen": True},
        "app stops": early,
    }


async def test_readiness_turns_off_at_sigterm_and_the_servers_own_handler_still_runs():
    from tests.support import call

    from asgi_mlperf import PerfMiddleware

    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    plugin = Plugin()
    app = PerfMiddleware(Starlette(), plugin)
    try:
        async with plugin.lifespan(Starlette()):
            assert (await call(app, "/readyz")).status == 200
            signal.raise_signal(signal.SIGTERM)
            answer = await call(app, "/readyz")
            assert (answer.status, b"draining" in answer.body) == (503, True)
            assert (await call(app, "/livez")).status == 200
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


async def test_gc_mode_freeze_leaves_the_thresholds():
    before = gc.get_threshold()
    async with Plugin(Settings(gc={"mode": "freeze"})).lifespan(Starlette()):
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() > 1_000


@pytest.mark.usefixtures("slots_of_its_own")
async def test_pinned_workers_keep_to_their_cpus():
    import os

    before = os.sched_getaffinity(0)
    async with Plugin(Settings(threads={"pin": True}, workers=len(before))).lifespan(Starlette()):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
