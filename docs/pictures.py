"""Take docs/page.png: the built-in page in Chromium, with figures of the example app under a changing load.

``make pictures`` does it in about two minutes; it needs Chromium (``apt install chromium``).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp
from example_app.page import EXAMPLES
from tests.page.chromium import Tab, browsing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from example_app.page import Example

HERE = Path(__file__).parent
PORT = 8099
URL = f"http://127.0.0.1:{PORT}"
TOKEN = "pictures"  # noqa: S105 - of a server that lives for two minutes
STEPS = ((2, 20), (8, 25), (24, 15), (6, 20), (14, 20), (4, 30))
"""How many connections send requests, for how many seconds."""
SIZE = (1180, 1270)


@contextmanager
def serving() -> Iterator[None]:
    """Serve the example app until the block ends."""
    command = [sys.executable, "-m", "uvicorn", "example_app.main:app", "--port", str(PORT)]
    server = subprocess.Popen(  # noqa: S603 - our own example
        [*command, "--log-level", "warning"],
        cwd=HERE.parent,
        env={**os.environ, "ASGI_MLPERF_PAGE__TOKEN": TOKEN},
    )
    try:
        while server.poll() is None:
            with suppress(URLError), urlopen(f"{URL}/readyz"):  # noqa: S310 - http
                break
            with suppress(subprocess.TimeoutExpired):
                server.wait(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


async def send(session: aiohttp.ClientSession, example: Example, until: float) -> None:
    """Send one request after another, with a breath between them, as users do."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        async with session.post(example.path, json=example.body) as response:
            await response.read()
        await asyncio.sleep(0.02)


async def load(seconds: float, connections: int) -> None:
    """Keep connections to all three endpoints busy."""
    until = asyncio.get_running_loop().time() + seconds
    async with aiohttp.ClientSession(URL) as session, asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(send(session, EXAMPLES[number % len(EXAMPLES)], until))


def take(tab: Tab, scheme: str, name: str) -> None:
    """Take one picture."""
    tab.show(scheme, SIZE)
    tab.wait_for("true")
    (HERE / name).write_bytes(tab.screenshot())


def main() -> None:
    """Serve, load, look."""
    with serving(), tempfile.TemporaryDirectory() as directory, browsing(Path(directory)) as tab:
        tab.open(f"{URL}/mlperf", password=TOKEN)
        tab.wait_for("document.querySelector('#state.good')")
        asyncio.run(rounds(tab))


async def rounds(tab: Tab) -> None:
    """Go through the steps, and take the pictures while the last one runs."""
    for connections, seconds in STEPS:
        running = asyncio.create_task(load(seconds, connections))
        if (connections, seconds) == STEPS[-1]:
            await asyncio.sleep(seconds / 2)
            for scheme, name in (("light", "page.png"), ("dark", "page-dark.png")):
                await asyncio.to_thread(take, tab, scheme, name)
        await running


if __name__ == "__main__":
    main()
