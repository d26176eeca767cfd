"""How many workers the server was told to start, read off its command line and environment."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from asgi_mlperf.host import cgroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class _Server(NamedTuple):
    """How a server is told its workers: options, variables in the order that it heeds them, config file."""

    options: tuple[str, ...]
    variables: tuple[str, ...]
    configs: tuple[str, ...] = ()


_SERVERS = {
    "uvicorn": _Server(("--workers",), ("UVICORN_WORKERS", "WEB_CONCURRENCY")),
    "fastapi": _Server(("--workers",), ("WEB_CONCURRENCY",)),
    "gunicorn": _Server(("--workers", "-w"), ("WEB_CONCURRENCY",), ("-c", "--config")),
    "granian": _Server(("--workers",), ("GRANIAN_WORKERS",)),
    "hypercorn": _Server(("--workers", "-w"), (), ("-c", "--config")),
}


@dataclass(frozen=True)
class Workers:
    """The worker processes of this host and where the number came from; ``known`` if it was not guessed."""

    count: int
    source: str
    known: bool = True


UNKNOWN = Workers(1, "unknown, taken as one", known=False)
SINGLE = Workers(1, "no supervisor")


def workers_seen(environ: Mapping[str, str], root: Path = cgroup.ROOT) -> Workers:
    """Return the workers that this process's server, or the server that started it, was told to start.

    A server's own option wins over its variables, as in the server itself. A server that hides its command
    line, or may have read the number from a file, gives ``UNKNOWN``; so does a child process of a program
    that is none of the known servers.
    """
    own = _command(root / "proc/self")
    if own is None:
        return _from_variables(("WEB_CONCURRENCY",), environ) or UNKNOWN
    parent = _command(root / "proc" / (_parent(root) or "0"))
    for command in (own, parent or []):
        server = _server(command)
        if server is not None:
            return workers_told(server, command, environ, root)
    found = _from_variables(("WEB_CONCURRENCY",), environ)
    return found or (UNKNOWN if "--multiprocessing-fork" in own else SINGLE)


def _command(process: Path) -> list[str] | None:
    text = cgroup.read(process / "cmdline")
    return None if text is None else text.rstrip("\0").split("\0")


def _parent(root: Path) -> str | None:
    for line in (cgroup.read(root / "proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "PPid":
            return value.strip()
    return None


def _server(command: Sequence[str]) -> str | None:
    for word in command:
        name = PurePath(word.partition(":")[0]).stem
        if name in _SERVERS:
            return name
    return None


def workers_told(
    name: str, command: Sequence[str], environ: Mapping[str, str], root: Path = cgroup.ROOT
) -> Workers:
    """Return the workers that the server ``name`` makes of its arguments and environment."""
    server = _SERVERS[name]
    if name == "gunicorn":
        command = [*shlex.split(environ.get("GUNICORN_CMD_ARGS", "")), *command]
    count = option_told(command, server.options)
    if count is not None:
        return _number(count, f"{name} {server.options[-1]}") or UNKNOWN
    found = _from_variables(server.variables, environ)
    if found is not None:
        return found
    hidden = f"{name}:" in command[0]  # setproctitle has overwritten the command line
    if hidden or option_told(command, server.configs) is not None:
        return UNKNOWN
    if name == "gunicorn" and (root / "proc/self/cwd/gunicorn.conf.py").exists():
        return UNKNOWN
    return Workers(1, f"{name}'s default")


def option_told(command: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the value of the last of these options: ``--name value``, ``--name=value`` or ``-nvalue``."""
    found = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        for name in names:
            if word == name:
                found = following
            elif word.startswith(f"{name}="):
                found = word.removeprefix(f"{name}=")
            elif len(name) == len("-w") and word.startswith(name):
                found = word.removeprefix(name)
    return found


def _from_variables(names: Sequence[str], environ: Mapping[str, str]) -> Workers | None:
    return next((found for name in names if (found := _number(environ.get(name, ""), name))), None)


def _number(text: str, source: str) -> Workers | None:
    return Workers(int(text), source) if text.isdigit() and int(text) > 0 else None
