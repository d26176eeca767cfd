from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from tests.support import call

from asgi_mlperf import Plugin, Settings


async def scraped(app) -> str:
    return (await call(app, "/metrics")).body.decode()


async def test_what_a_batched_function_does_is_measured():
    plugin, app = Plugin(Settings(pool={"threads": 1})), Starlette()
    plugin.install(app)

    @plugin.batched(max_size=3, cost=len, max_cost=9, executor="thread")
    def lengths(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    async with plugin.lifespan(app):
        await asyncio.gather(*map(lengths, ("aaa", "b", "cc", "dd")))
        text = await scraped(app)
    name = f'function="{lengths.__qualname__}"'
    for line in (
        f"asgi_mlperf_batch_size_sum{{{name}}} 4.0",
        f"asgi_mlperf_batch_size_count{{{name}}} 2.0",
        f"asgi_mlperf_batch_linger_seconds_count{{{name}}} 4.0",
        f"asgi_mlperf_batch_run_seconds_count{{{name}}} 2.0",
        f'asgi_mlperf_batch_closed_total{{{name},reason="full"}} 1.0',
        f'asgi_mlperf_batch_closed_total{{{name},reason="idle_slot"}} 1.0',
        f"asgi_mlperf_batch_padding_ratio_count{{{name}}} 2.0",
        f'asgi_mlperf_batch_padding_ratio_bucket{{{name},le="0.3"}} 1.0',
        f'asgi_mlperf_batch_padding_ratio_bucket{{{name},le="0.4"}} 2.0',
        f'asgi_mlperf_batch_executor{{executor="thread",{name}}} 1.0',
        f'asgi_mlperf_batch_executor{{executor="inline",{name}}} 0.0',
        'asgi_mlperf_inference_queue_seconds_count{pool="default"} 4.0',
    ):
        assert line in text.splitlines()


async def test_coroutine_functions_run_as_tasks():
    plugin, app = Plugin(), Starlette()
    plugin.install(app)

    @plugin.batched
    async def echo(items: list[int]) -> list[int]:
        return items

    async with plugin.lifespan(app):
        await echo(1)
        assert (
            f'asgi_mlperf_batch_executor{{executor="task",function="{echo.__qualname__}"}} 1.0'
            in await scraped(app)
        )
