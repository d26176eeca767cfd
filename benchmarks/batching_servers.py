"""The servers that ``batching.py`` compares: how each is started, asked and checked."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from common import family, free_port

CONTENDERS = Path(__file__).parent / "contenders"
START_S, STOP_S = 90.0, 10.0
TOLERANCE = 1e-4
# One native thread a process for all of them: two cores are shared with the load.
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
}

Row = Sequence[float]


class Absent(Exception):  # noqa: N818 - said of a contender
    """A contender cannot be started here, for the reason in the message."""


class WrongAnswer(Exception):  # noqa: N818 - what it is
    """A contender answered what the model does not."""


@dataclass(frozen=True)
class Contender:
    """One way to serve the model; ``{python}``, ``{port}`` and ``{workers}`` in ``command`` are filled in."""

    family: str
    workers: int
    command: str
    path: str
    package: str = ""
    """What it needs from the contenders' interpreter; the others run on this one."""
    question: str = '{"x":%s}'
    answer: Callable[[Any], Row] = itemgetter("y")

    @property
    def name(self) -> str:
        return self.family if self.workers == 1 else f"{self.family}, {self.workers} workers"

    def body(self, row: Row) -> str:
        return self.question % json.dumps(row, separators=(",", ":"))


UVICORN = (
    "{python} -m uvicorn %s:app --port {port} --workers {workers}"
    " --no-access-log --no-proxy-headers --log-level warning"
)
COALESCING = f"{UVICORN} --http asgi_mlperf.wire.coalescing:CoalescingProtocol"
GRANIAN = (
    "{python} -m granian %s:app --interface asgi --loop uvloop --port {port} --workers {workers}"
    " --no-access-log --log-level warning"
)
ARRAYS: dict[str, Any] = {"question": "%s", "answer": list}
MOSEC = "{python} %s.py --address 127.0.0.1 --port {port} --log-level error"
BENTOML = "{python} -m bentoml serve bentoml_server:Model --host 127.0.0.1 --port {port}"


def all_contenders() -> list[Contender]:
    found = []
    for workers in (1, 2):
        found += [
            Contender("asgi-mlperf", workers, COALESCING % "plugin_app", "/arrays", **ARRAYS),
            Contender(
                "asgi-mlperf (FastAPI's defaults)",
                workers,
                "env FASTAPI_DEFAULTS=1 " + COALESCING % "plugin_app",
                "/arrays",
                **ARRAYS,
            ),
            Contender("asgi-mlperf (endpoint)", workers, COALESCING % "endpoint_app", "/arrays", **ARRAYS),
            Contender("asgi-mlperf (Starlette)", workers, COALESCING % "starlette_app", "/arrays", **ARRAYS),
            Contender("asgi-mlperf (two writes)", workers, UVICORN % "plugin_app", "/arrays", **ARRAYS),
            Contender("asgi-mlperf (granian)", workers, GRANIAN % "plugin_app", "/arrays", **ARRAYS),
            Contender("asgi-mlperf (stock's route)", workers, COALESCING % "plugin_app", "/lists"),
            Contender("FastAPI async", workers, UVICORN % "stock_app", "/async"),
            Contender("FastAPI def", workers, UVICORN % "stock_app", "/def"),
            Contender("mosec", workers, MOSEC % "mosec_server", "/inference", "mosec"),
            Contender("mosec (orjson)", workers, MOSEC % "mosec_orjson_server", "/inference", "mosec"),
        ]
    return [
        *found,
        Contender("LitServe", 1, "{python} litserve_server.py {port}", "/predict", "litserve"),
        Contender("BentoML", 1, BENTOML, "/predict", "bentoml", '{"inputs":[%s]}', itemgetter(0)),
        Contender("Ray Serve", 1, "{python} ray_server.py {port}", "/predict", "ray"),
    ]


@dataclass(frozen=True)
class Server:
    """A contender that runs."""

    contender: Contender
    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.contender.path}"

    def pids(self) -> list[int]:
        return family(self.pid)

    def ask(self, row: Row) -> Row:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", self.contender.path, self.contender.body(row), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise WrongAnswer(f"{self.contender.name} answered {response.status}: {content[:200]!r}")
        return self.contender.answer(json.loads(content))

    def verify(self, rows: Sequence[Row], expected: Sequence[Row]) -> None:
        """Ask for all rows at once; raises ``WrongAnswer`` unless each caller gets its own scores."""
        with ThreadPoolExecutor(len(rows)) as callers:
            answers = list(callers.map(self.ask, rows))
        for answer, scores in zip(answers, expected, strict=True):
            if len(answer) != len(scores) or any(
                abs(one - other) > TOLERANCE for one, other in zip(answer, scores, strict=True)
            ):
                raise WrongAnswer(f"{self.contender.name} answered {answer} for {scores}")


@contextmanager
def served(contender: Contender, python: str, probe: Row) -> Iterator[Server]:
    """Run the contender until the block ends, with every process that it starts."""
    interpreter = python if contender.package else sys.executable
    if contender.package:
        _require(interpreter, contender.package)
    port = free_port()
    workers = str(contender.workers)
    command = contender.command.format(python=interpreter, port=port, workers=workers).split()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=CONTENDERS,
            env={**os.environ, **VARIABLES, "WORKERS": workers, "ASGI_MLPERF_WORKERS": workers},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        server = Server(contender, process.pid, port)
        try:
            if not _answers(server, process, probe):
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines()
                raise Absent(f"did not start: {said[-1] if said else 'it said nothing'}")
            yield server
        finally:
            _stop(process)


def _require(python: str, package: str) -> None:
    found = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise Absent(f"{python} cannot import it: {found.stderr.strip().splitlines()[-1]}")


def _answers(server: Server, process: subprocess.Popen[bytes], probe: Row) -> bool:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        with suppress(OSError, http.client.HTTPException, WrongAnswer):
            server.ask(probe)
            return True
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    started = family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions that an interpreter has of some packages."""
    code = (
        "import json, platform, sys, importlib.metadata as m\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "found = {name: have[name] for name in sys.argv[1:] if name in have}\n"
        "print(json.dumps({'python': platform.python_version()} | found))"
    )
    told = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    return dict(json.loads(told))
