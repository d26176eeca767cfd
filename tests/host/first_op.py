"""A process whose first native op runs where it is told; prints how many OS threads the op started.

``python first_op.py <where> <op> [<op> ...]``, where being run, def, async, to_thread, executor, old_thread
or lazy. Of several ops each is the first of a process of its own, forked from one that has imported PyTorch
and run nothing: the import takes longer than all else.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.host.asking import ask
from tests.host.native import OPS as NATIVE

from asgi_mlperf import Plugin, Settings

OPS = {
    "mm": ("torch", "m = torch.empty(600, 600)", "m @ m"),
    "conv": ("torch", "m = torch.empty(8, 16, 64, 64); c = torch.nn.Conv2d(16, 16, 3)", "c(m)"),
    "linear": ("torch", "m = torch.empty(600, 600); c = torch.nn.Linear(600, 40)", "c(m)"),
    "tanh": ("torch", "m = torch.empty(600, 600)", "torch.tanh(m)"),
    "softmax": ("torch", "m = torch.empty(600, 600)", "torch.softmax(m, 0)"),
    "numpy": ("numpy", "m = numpy.ones((600, 600))", "m @ m"),
    "scipy": ("scipy.linalg", "import numpy; m = numpy.eye(600)", "scipy.linalg.lu_factor(m)"),
    "sklearn": (
        "sklearn.cluster",
        "import numpy; m = numpy.random.default_rng(0).random((3000, 8))",
        "sklearn.cluster.KMeans(4, n_init=1, max_iter=3).fit(m)",
    ),
} | {
    name: (
        "tests.host.native",
        "from tests.host.native import OPS, load; library = load()",
        f"OPS['{name}'](library)",
    )
    for name in NATIVE
}


def load(op: str) -> None:
    importlib.import_module(OPS[op][0])


def prepare(op: str) -> dict[str, object]:
    load(op)
    package = OPS[op][0].partition(".")[0]
    names: dict[str, object] = {package: sys.modules[package]}
    exec(OPS[op][1], names)
    return names


def started_by(op: str, names: dict[str, object]) -> str:
    return started_while(lambda: exec(OPS[op][2], names))


def started_while(run: Callable[[], object]) -> str:
    """Count the threads that this one starts: they inherit its name, or Intel's OpenMP names them."""
    own = Path("/proc/self/task", str(threading.get_native_id()), "comm")
    name, before = f"op-{threading.get_native_id()}", own.read_text()
    own.write_text(name)
    run()
    threads = list(names_of_threads())
    started = threads.count(name) - 1 + threads.count("openmp_worker")
    own.write_text(before)
    return str(started)


def names_of_threads() -> Iterator[str]:
    for comm in Path("/proc/self/task").glob("*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # one may end meanwhile
            yield comm.read_text().strip()


async def main(where: str, op: str) -> None:
    plugin, names = Plugin(Settings()), {} if where == "lazy" else prepare(op)

    def measure() -> str:
        return started_by(op, names or prepare(op))

    def of_thread(_: object) -> PlainTextResponse:
        return PlainTextResponse(measure())

    async def of_loop(_: object) -> PlainTextResponse:
        loop = asyncio.get_running_loop()
        if where == "run":
            return PlainTextResponse(await plugin.run(measure))
        if where == "to_thread":
            return PlainTextResponse(await asyncio.to_thread(measure))
        if where in {"executor", "old_thread"}:
            return PlainTextResponse(await loop.run_in_executor(executor, measure))
        return PlainTextResponse(measure())

    app = Starlette(routes=[Route("/", of_thread if where == "def" else of_loop)])
    plugin.install(app)
    with ThreadPoolExecutor(1) as executor:
        if where == "old_thread":
            executor.submit(int).result()
        async with app.router.lifespan_context(app):
            sys.stdout.write(f"{op} {await ask(app)}\n")


def main_in_fork(where: str, op: str) -> None:
    child = os.fork()
    if not child:
        asyncio.run(main(where, op))
        sys.stdout.flush()
        os._exit(0)  # an ordinary end takes longer: each page of PyTorch's objects is copied first
    os.waitpid(child, 0)


if __name__ == "__main__":
    place, *ops = sys.argv[1:]
    if len(ops) == 1:
        asyncio.run(main(place, *ops))
    else:
        for each in ops:
            load(each)
        for each in ops:
            main_in_fork(place, each)
