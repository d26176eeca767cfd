"""Real servers in processes of their own, and what a test needs to follow them without guessing."""

from __future__ import annotations

import http.client
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import asgi_mlperf

PATIENCE_S = 20.0
PACKAGE = str(Path(asgi_mlperf.__file__).parents[1])
"""Where the package under test is: the servers are to run that one, wherever another is installed."""

COMMANDS = {
    "uvicorn": "uvicorn served:app --host 127.0.0.1 --port {port}",
    "uvicorn --workers 2": "uvicorn served:app --host 127.0.0.1 --port {port} --workers 2",
    "asgi-mlperf run": "asgi_mlperf run -- served:app --host 127.0.0.1 --port {port}",
    "uvicorn --reload": "uvicorn served:app --host 127.0.0.1 --port {port} --reload",
    "gunicorn": "gunicorn served:app -k uvicorn_worker.UvicornWorker -w 2 -b 127.0.0.1:{port}",
    "hypercorn": "hypercorn served:app -k asyncio -b 127.0.0.1:{port}",
    "hypercorn -k uvloop": "hypercorn served:app -k uvloop -b 127.0.0.1:{port}",
    "hypercorn -w 0": "hypercorn served:app -k asyncio -w 0 -b 127.0.0.1:{port}",
    "granian": "granian served:app --interface asgi --host 127.0.0.1 --port {port}",
    "granian --workers 2": "granian served:app --interface asgi --host 127.0.0.1 --port {port} --workers 2",
}
COMMANDS["gunicorn --preload"] = COMMANDS["gunicorn"] + " --preload"
WORKERS = {"uvicorn --workers 2": 2, "gunicorn": 2, "gunicorn --preload": 2, "granian --workers 2": 2}


class Response(NamedTuple):
    status: int
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Waiting(NamedTuple):
    """A function of the app that waits at the gate."""

    name: str
    connection: socket.socket

    def let_through(self) -> None:
        self.connection.sendall(b"!")


class Server:
    """A server that runs, the events that its app reports, and the gate at which its functions wait."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        output: Path,
        reports: socket.socket,
        gate: socket.socket,
    ) -> None:
        self.process = process
        self.port = port
        self.events: list[dict[str, Any]] = []
        self._output = output
        self._reports = reports
        self._gate = gate
        self._at_gate: list[socket.socket] = []

    @property
    def output(self) -> str:
        return self._output.read_text()

    def connect(self) -> http.client.HTTPConnection:
        """Connect, waiting for the server to listen."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
            try:
                connection.connect()
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self._ends_within(0.02):
                    raise AssertionError(f"the server does not listen:\n{self.output}") from None
            else:
                return connection

    def get(self, path: str) -> Response:
        with closing(self.connect()) as connection:
            return get(connection, path)

    def request(self, path: str) -> socket.socket:
        """Send a request whose response is read, or not, by the test."""
        connection = self.connect().sock
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        return connection

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the first ``count`` such events, waiting for them."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := [each for each in self.events if each["event"] == event]) < count:
            self._reports.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self.events.append(json.loads(self._reports.recv(65536)))
            except TimeoutError:
                raise AssertionError(f"no {event!r} but {self.events}\n{self.output}") from None
        return found[:count]

    def wait_for_output(self, text: str, count: int = 1, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until the server has printed ``text`` so many times."""
        deadline = time.monotonic() + patience_s
        while self.output.count(text) < count:
            if time.monotonic() > deadline or self._ends_within(0.02):
                raise AssertionError(f"no {text!r} in the output\n{self.output}")

    def read_events(self) -> list[dict[str, Any]]:
        """Return every event so far, in order."""
        self._reports.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.events.append(json.loads(self._reports.recv(65536)))
        return self.events

    def at_gate(self) -> Waiting:
        """Wait until a function of the app arrives at the gate."""
        try:
            connection, _ = self._gate.accept()
        except TimeoutError:
            raise AssertionError(f"nothing came to the gate\n{self.output}") from None
        self._at_gate.append(connection)
        connection.settimeout(PATIENCE_S)
        return Waiting(connection.recv(1024).decode(), connection)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_status(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server goes on\n{self.output}") from None

    def left_running(self) -> list[str]:
        """Return the processes that the server started and left; helpers that are just ending may end."""
        deadline = time.monotonic() + 5
        for pid in _of_group(self.process.pid):
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                select.select([handle], [], [], max(0, deadline - time.monotonic()))
                os.close(handle)
        return [Path(f"/proc/{pid}/cmdline").read_text() for pid in _of_group(self.process.pid)]

    def close(self) -> None:
        """Send away who still waits at the gate."""
        for connection in self._at_gate:
            connection.close()

    def _ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def get(connection: http.client.HTTPConnection, path: str) -> Response:
    """Ask over an open connection and leave it open."""
    connection.request("GET", path)
    response = connection.getresponse()
    return Response(response.status, response.read().decode())


@contextmanager
def serving(
    command: str, directory: Path, *, plugin: bool = True, environ: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start ``command`` on a copy of the app in ``directory``, and end all of it at the end of the block."""
    directory.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("served.py"), directory)
    output = directory / "output"
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as reports,
        closing(socket.create_server(("127.0.0.1", 0))) as gate,
        output.open("wb") as file,
    ):
        reports.bind(("127.0.0.1", 0))
        gate.settimeout(PATIENCE_S)
        port = _free_port()
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ASGI_MLPERF_", "PROMETHEUS_", "WEB_CONCURRENCY"))
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(command.format(port=port))],
            cwd=directory,
            env={
                **clean,
                "PYTHONPATH": os.pathsep.join([str(directory), PACKAGE]),
                "PYTHONWARNINGS": "default",
                "SERVED_GATE": str(gate.getsockname()[1]),
                "SERVED_REPORTS": str(reports.getsockname()[1]),
                **({} if plugin else {"SERVED_STOCK": "yes"}),
                **(environ or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with closing(Server(process, port, output, reports, gate)) as server:
                yield server
        finally:
            for pid in _of_group(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _of_group(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(process_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
        return port
