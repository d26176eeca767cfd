from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from tests.support import call

from asgi_mlperf import BatchError, Overloaded, Plugin, Settings
from asgi_mlperf.inference.backlog import Backlog
from asgi_mlperf.inference.batching import Batcher
from asgi_mlperf.inference.gathering import Gathering


def crashes(monkeypatch, where: str, *, times: int = 1) -> None:
    """Let a step of the dispatcher fail, as an error of ours would."""
    owner = next(kind for kind in (Backlog, Gathering, Batcher) if hasattr(kind, where))
    step, left = getattr(owner, where), [times]

    def failing(self, *args, **options):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("a bug")
        return step(self, *args, **options)

    monkeypatch.setattr(owner, where, failing)


def installed() -> tuple[Plugin, Starlette]:
    plugin, app = Plugin(Settings(pool={"threads": 1})), Starlette()
    plugin.install(app)
    return plugin, app


async def running_again(batched, item) -> object:
    while True:
        try:
            return await batched(item)
        except Overloaded:
            await asyncio.sleep(0)


@pytest.mark.parametrize("where", ["take", "note", "learn", "room", "next_up"])
async def test_a_crash_fails_its_waiters_turns_readiness_off_and_starts_again(monkeypatch, where, caplog):
    plugin, app = installed()
    echo = plugin.batched(lambda items: items, executor="inline")
    async with plugin.lifespan(app):
        assert await echo(0) == 0
        crashes(monkeypatch, where)
        results = await asyncio.gather(*map(echo, range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [BatchError] * 3
        assert all("dispatcher of" in str(result) and "a bug" in str(result) for result in results)
        assert len({id(result) for result in results}) == 3
        ready = await call(app, "/readyz")
        assert ready.status == 503
        assert b"start again after a failure" in ready.body
        with pytest.raises(Overloaded, match="starting again"):
            await echo(1)
        assert await running_again(echo, 5) == 5
        assert (await call(app, "/readyz")).status == 200
        assert await plugin.run(abs, -1) == 1
        metrics = (await call(app, "/metrics")).body.decode()
    assert f'asgi_mlperf_batch_restarts_total{{function="{echo.__qualname__}"}} 1.0' in metrics
    assert "failed, and starts again" in caplog.text


async def test_a_crash_while_gathering_leaves_nothing_for_the_drain_to_wait_for(monkeypatch):
    plugin, app = Plugin(Settings(health={"drain_ms": 60_000})), Starlette()
    echo = plugin.batched(lambda items: items)
    async with plugin.lifespan(app):
        crashes(monkeypatch, "_is_complete")
        with pytest.raises(BatchError, match="a bug"):
            await echo(1)


async def test_a_plugin_stopped_while_its_batches_are_down_leaves_no_timer(monkeypatch):
    plugin, app = installed()
    echo = plugin.batched(lambda items: items)
    async with plugin.lifespan(app):
        crashes(monkeypatch, "take")
        with pytest.raises(BatchError):
            await echo(1)


async def test_a_result_that_fails_when_it_is_looked_at_fails_its_batch_alone():
    class Spiteful(list[Any]):
        def __len__(self):
            raise RuntimeError("no length")

    plugin, app = installed()

    @plugin.batched
    def spiteful(items):
        return Spiteful(items) if items[0] else items

    async with plugin.lifespan(app):
        with pytest.raises(RuntimeError, match="no length"):
            await spiteful(1)
        assert await spiteful(0) == 0
        assert (await call(app, "/readyz")).status == 200
