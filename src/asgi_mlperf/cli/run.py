"""``asgi-mlperf run``: start your own server with what is read only before the app is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.host.cpu import cpu_budget
from asgi_mlperf.host.environment import heap_variables, launch_variables, says_of_heaps
from asgi_mlperf.host.heaps import heaps
from asgi_mlperf.host.memory import memory_limit
from asgi_mlperf.host.supervisor import Workers, option_told, workers_told
from asgi_mlperf.host.widths import widths
from asgi_mlperf.settings import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

_COMMANDS = {
    "uvicorn": (),
    "gunicorn": ("--worker-class", "uvicorn_worker.UvicornWorker"),
    "granian": ("--interface", "asgi"),
    "hypercorn": (),
}
_COALESCING = "asgi_mlperf.wire.coalescing:CoalescingProtocol"
_LIBRARIES = (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"), Path("/lib"))


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the options; what follows ``--`` is the server's own."""
    command.add_argument(
        "--workers", type=int, help="worker processes; default: as many as are configured, or 1"
    )
    command.add_argument("--server", choices=_COMMANDS, default="uvicorn", help="default: uvicorn")
    command.add_argument("--allocator", choices=("jemalloc", "tcmalloc"), help="preload it, if it is found")
    command.add_argument("arguments", nargs="+", metavar="app:app …", help="the server's own arguments")


def main(options: argparse.Namespace) -> None:
    """Decide, say so in one line, and become the server. Raises ``ConfigurationError`` if it is missing."""
    server, arguments = options.server, options.arguments
    for package in (server, *(["uvicorn_worker"] if _default_worker_class(server, arguments) else [])):
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(
                f"{package} is not installed here: pip install {package.replace('_', '-')}"
            )
    command, variables, summary = plan(options, Settings(), os.environ, find_allocator)
    print(summary, file=sys.stderr, flush=True)
    become(command, {**os.environ, **variables})


def become(command: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by ``command``."""
    os.execve(command[0], command, environ)  # noqa: S606 - the user's own server, without a shell


def plan(
    options: argparse.Namespace,
    settings: Settings,
    environ: Mapping[str, str],
    find: Callable[[str], Path | None],
) -> tuple[list[str], dict[str, str], str]:
    """Return the server's command, the variables to add to its environment, and one line that says so.

    Variables that are set already are left alone. Without ``--workers`` the number is what the server
    itself will make of its arguments and the environment.
    """
    given = options.workers or settings.workers
    told = Workers(given, "setting") if given else workers_told(options.server, options.arguments, environ)
    budget = cpu_budget(cpus=settings.threads.cpus, workers=told.count, environ=environ)
    allowed = widths(
        native=settings.threads.native,
        cpus=budget.per_worker,
        cores=budget.cores_per_worker,
        inference_threads=settings.pool.threads or budget.per_worker,
    )
    on = settings.enabled and settings.threads.enabled
    wanted = launch_variables(allowed.alone, environ) if on else {}
    left_alone = sorted(wanted.keys() & environ.keys())
    if on and settings.threads.keep_freed_memory:
        shared = heaps(budget.per_worker, memory_limit(), budget.workers)
        wanted |= heap_variables(shared.count, shared.kept, environ)
        left_alone += says_of_heaps(environ)
    variables = {name: text for name, text in wanted.items() if name not in environ}
    if told.known:
        variables["ASGI_MLPERF_WORKERS"] = str(told.count)
    allocator = find(options.allocator) if options.allocator else None
    if allocator is not None:
        variables["LD_PRELOAD"] = " ".join(filter(None, (str(allocator), environ.get("LD_PRELOAD"))))
    coalesces = settings.enabled and _leaves_protocol_open(options, environ)
    facts = [
        f"{budget.cpus:g} CPUs ({budget.source})",
        f"{told.count} workers ({told.source})",
        f"{allowed.alone} native threads each",
        *(["a write for each response"] if coalesces else []),
        f"{options.allocator or 'allocator'} {allocator or 'not found' if options.allocator else 'as it is'}",
        *([f"left as set: {' '.join(left_alone)}"] if left_alone else []),
    ]
    command = _command(options, given, ["--http", _COALESCING] if coalesces else [])
    return command, variables, f"asgi-mlperf run: {', '.join(facts)}"


def _command(options: argparse.Namespace, workers: int | None, http: list[str]) -> list[str]:
    own = [*_COMMANDS[options.server], *http]
    if options.server == "gunicorn" and not _default_worker_class(options.server, options.arguments):
        own.clear()
    if workers is not None:
        own += ["--workers", str(workers)]
    return [sys.executable, "-m", options.server, *own, *options.arguments]


def _default_worker_class(server: str, arguments: list[str]) -> bool:
    return server == "gunicorn" and option_told(arguments, ("-k", "--worker-class")) is None


def _leaves_protocol_open(options: argparse.Namespace, environ: Mapping[str, str]) -> bool:
    """Whether nobody chose uvicorn's HTTP, and it would be httptools', and can be named (since 0.36)."""
    is_chosen = "UVICORN_HTTP" in environ or option_told(options.arguments, ("--http",)) is not None
    if options.server != "uvicorn" or is_chosen:
        return False
    try:
        importlib.import_module("httptools")
    except ImportError:
        return False
    return tuple(map(int, importlib.metadata.version("uvicorn").split(".")[:2])) >= (0, 36)


def find_allocator(name: str) -> Path | None:
    """Return the shared library of ``jemalloc`` or ``tcmalloc`` if this system has it."""
    patterns = {"jemalloc": ("libjemalloc.so*",), "tcmalloc": ("libtcmalloc_minimal.so*", "libtcmalloc.so*")}
    for directory in _LIBRARIES:
        for pattern in patterns[name]:
            for depth in ("", "*/"):
                found = sorted(directory.glob(depth + pattern))
                if found:
                    return found[0]
    return None
