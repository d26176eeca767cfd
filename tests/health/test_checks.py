from __future__ import annotations

import asyncio
import threading
from functools import partial

import anyio
import pytest
from starlette.applications import Starlette
from tests.support import call

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.health.checks import Check, Checks
from asgi_mlperf.inference.options import is_coroutine_function


class World:
    """Checks on a clock that stands still."""

    def __init__(self, *funcs, timeout_s: float = 10.0, cache_s: float = 1.0) -> None:
        self.now = 0.0
        declared = [Check(f"check{n}", func, is_coroutine_function(func)) for n, func in enumerate(funcs)]
        self.checks = Checks(declared, timeout_s=timeout_s, cache_s=cache_s, clock=lambda: self.now)

    async def ask(self) -> list[str]:
        await self.checks.ask()
        return self.checks.last

    async def ask_again(self) -> list[str]:
        self.now += 1.0
        return await self.ask()


def raises():
    raise LookupError("password=secret")


async def raises_on_the_loop():
    raise LookupError("password=secret")


async def answers(answer):
    return answer


@pytest.mark.parametrize(
    ("func", "reasons"),
    [
        (lambda: None, []),
        (lambda: True, []),
        (lambda: "", []),
        (lambda: False, ["check0: failed"]),
        (lambda: "the index is being rebuilt", ["check0: the index is being rebuilt"]),
        (lambda: 3, ["check0: returned int; a check returns True, False or a reason"]),
        (raises, ["check0: LookupError"]),
        (raises_on_the_loop, ["check0: LookupError"]),
        (partial(answers, True), []),
        (partial(answers, False), ["check0: failed"]),
        (lambda: answers("a coroutine"), ["check0: a coroutine"]),
    ],
)
async def test_what_a_check_answers_is_a_reason_or_none(func, reasons):
    world = World(func)
    async with world.checks.lifespan():
        assert await world.ask() == reasons


async def test_an_error_is_logged_once_with_its_text_which_no_probe_sees(caplog):
    world = World(raises)
    async with world.checks.lifespan():
        for _ in range(3):
            assert await world.ask_again() == ["check0: LookupError"]
    (record,) = caplog.records
    assert record.message == "the check check0 failed"
    assert "password=secret" in caplog.text


async def test_checks_run_side_by_side_plain_ones_in_threads_that_keep_nothing_alive():
    both = threading.Barrier(2)
    daemons = []

    def waits_for_the_other():
        both.wait(10)
        daemons.append(threading.current_thread().daemon)

    world = World(waits_for_the_other, waits_for_the_other)
    async with world.checks.lifespan():
        assert await world.ask() == []
    assert daemons == [True, True]


async def test_answers_are_kept_for_a_moment():
    asked = []
    world = World(lambda: asked.append(1))
    async with world.checks.lifespan():
        for _ in range(5):
            await world.ask()
        assert len(asked) == 1
        await world.ask_again()
        assert len(asked) == 2


async def test_probes_that_come_together_share_one_round_and_one_that_gives_up_leaves_it_to_the_others():
    asked, opened = [], asyncio.Event()

    async def waits():
        asked.append(1)
        await opened.wait()
        return "seen"

    world = World(waits)
    async with world.checks.lifespan():
        gives_up, stays = (asyncio.create_task(world.ask()) for _ in range(2))
        await anyio.wait_all_tasks_blocked()
        gives_up.cancel()
        await asyncio.wait({gives_up})
        opened.set()
        assert await stays == ["check0: seen"]
    assert asked == [1]


async def test_a_plain_check_that_hangs_is_given_up_in_time_and_not_started_again():
    started, opened = [], threading.Event()

    def hangs():
        started.append(1)
        opened.wait(10)
        return "late"

    world = World(hangs, timeout_s=0.01)
    async with world.checks.lifespan():
        assert await world.ask() == ["check0: no answer for 0.0 s"]
        assert await world.ask_again() == ["check0: no answer for 1.0 s"]
        assert started == [1]
        opened.set()
        with anyio.fail_after(10):
            while await world.ask_again() != ["check0: late"]:
                pass


async def test_a_coroutine_check_that_hangs_is_cancelled_and_asked_anew():
    ends = []

    async def hangs():
        try:
            await anyio.sleep_forever()
        finally:
            ends.append(1)

    world = World(hangs, timeout_s=0.01)
    async with world.checks.lifespan():
        assert await world.ask() == ["check0: no answer for 0.0 s"]
        assert await world.ask_again() == ["check0: no answer for 0.0 s"]
    assert ends == [1, 1]


async def test_a_check_that_cancels_itself_fails():
    async def cancels():
        raise asyncio.CancelledError

    world = World(cancels)
    async with world.checks.lifespan():
        assert await world.ask() == ["check0: cancelled"]


async def test_the_end_does_not_wait_for_a_check_that_hangs():
    started, opened = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hangs():
        loop.call_soon_threadsafe(started.set)
        opened.wait(10)

    world = World(hangs)
    with anyio.fail_after(5):
        async with world.checks.lifespan():
            probe = asyncio.create_task(world.ask())
            await started.wait()
        assert await probe == []
    opened.set()


async def test_a_plugins_checks_are_reasons_at_readyz_and_nowhere_else():
    plugin, app = Plugin(Settings(health={"check_cache_ms": 0})), Starlette()
    answers_of: dict[str, object] = {"database": True, "index": True}

    @plugin.check
    async def database():
        return answers_of["database"]

    @plugin.check(name="search index", timeout=5)
    def index():
        return answers_of["index"]

    plugin.install(app)
    async with plugin.lifespan(app):
        assert (await call(app, "/readyz")).body == b'{"ready":true,"reasons":[]}'
        answers_of.update(database=False, index="rebuilding")
        answer = await call(app, "/readyz")
        assert (answer.status, answer.body) == (
            503,
            b'{"ready":false,"reasons":["database: failed","search index: rebuilding"]}',
        )
        assert (await call(app, "/livez")).status == (await call(app, "/startupz")).status == 200
    assert await database() is False, "the function is as it was"


async def test_checks_are_not_asked_before_the_start_is_over():
    plugin, app, asked = Plugin(), Starlette(), []
    plugin.check(lambda: asked.append(1), name="late")
    plugin.install(app)

    @plugin.warmup
    async def warm_up():
        answer = await call(app, "/readyz")
        assert answer.body == b'{"ready":false,"reasons":["warming up"]}'

    async with plugin.lifespan(app):
        assert asked == []
        await call(app, "/readyz")
        assert asked == [1]


async def test_a_check_does_not_wait_behind_model_calls():
    plugin, app = Plugin(Settings(pool={"threads": 1})), Starlette()
    plugin.check(lambda: True, name="thread")
    plugin.install(app)
    opened = threading.Event()
    async with plugin.lifespan(app):
        busy = asyncio.create_task(plugin.run(opened.wait, 10))
        await anyio.wait_all_tasks_blocked()
        assert (await call(app, "/readyz")).status == 200
        opened.set()
        await busy


def test_two_checks_of_one_name_are_an_error():
    plugin = Plugin()
    plugin.check(raises)
    with pytest.raises(ValueError, match="already"):
        plugin.check(raises)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_senseless_timeout_is_an_error(timeout):
    with pytest.raises(ValueError, match="seconds above 0"):
        Plugin().check(raises, timeout=timeout)
