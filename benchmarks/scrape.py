"""What a scrape does to the event loop, and what busy inference slots do to a scrape.

In process: an app with as many series as asked for is scraped while a task on the same event loop, which
wants to run all the time, notes how long it was kept from it; then scrapes are timed while every inference
slot, and a queue behind them, is busy with Python code.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

from common import http_scope
from prometheus_client import REGISTRY, Gauge
from starlette.applications import Starlette

from asgi_mlperf import Plugin, Settings


async def scraped(app: Starlette, accept_encoding: bytes) -> tuple[float, int]:
    """Scrape once; return milliseconds and bytes."""
    size = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal size
        size += len(message.get("body", b""))

    scope = http_scope("GET", "/metrics", (b"accept-encoding", accept_encoding))
    began = time.perf_counter()
    await app(scope, receive, send)
    return (time.perf_counter() - began) * 1e3, size


async def blocked_ms(app: Starlette, scrapes: int, accept_encoding: bytes) -> tuple[list[float], list[float]]:
    """Return the longest time that each scrape kept the loop from turning, and what the scrape took."""
    longest, took = [], []
    for _ in range(scrapes):
        scrape = asyncio.create_task(scraped(app, accept_encoding))
        worst, before = 0.0, time.perf_counter()
        while not scrape.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            worst, before = max(worst, now - before), now
        longest.append(worst * 1e3)
        took.append(scrape.result()[0])
    return longest, took


def spin(seconds: float) -> int:
    until, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        turns += 1
    return turns


async def busy_ms(plugin: Plugin, app: Starlette, scrapes: int, slots: int) -> list[float]:
    """Return what scrapes take while every slot is busy and as many calls again wait."""
    stop = asyncio.Event()

    async def keep_busy() -> None:
        while not stop.is_set():
            await plugin.run(spin, 0.05)

    tasks = [asyncio.create_task(keep_busy()) for _ in range(2 * slots)]
    await asyncio.sleep(0.1)
    taken = [(await scraped(app, b"gzip"))[0] for _ in range(scrapes)]
    stop.set()
    await asyncio.gather(*tasks)
    return taken


def row(name: str, values: list[float]) -> str:
    return f"| {name} | {statistics.median(values):.1f} | {max(values):.1f} |"


async def measure(series: int, scrapes: int, slots: int) -> None:
    things = Gauge("things", "Things by number.", ["number", "kind"])
    for number in range(series):
        things.labels(str(number), "of some kind").set(number)
    plugin, app = Plugin(Settings(pool={"threads": slots}, gc={"mode": "off"})), Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        await scraped(app, b"")
        print(f"{series} series, {scrapes} scrapes, {slots} inference slots\n")
        print("| milliseconds | median | longest |\n|---|---|---|")
        for name, coding in (("plain", b""), ("gzip", b"gzip")):
            longest, took = await blocked_ms(app, scrapes, coding)
            print(row(f"longest step of the event loop in a scrape, {name}", longest))
            print(row(f"a scrape, {name}", took))
        print(row("a scrape while every slot is busy", await busy_ms(plugin, app, scrapes, slots)))
    REGISTRY.unregister(things)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=2_000)
    parser.add_argument("--scrapes", type=int, default=30)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    asyncio.run(measure(options.series, options.scrapes, options.slots))


if __name__ == "__main__":
    main()
