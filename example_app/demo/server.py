"""The app under uvicorn, in a process of its own that never outlives the demo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import Signals
from time import monotonic, sleep
from typing import TYPE_CHECKING

from example_app.demo.failure import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HOST = "127.0.0.1"
_READY_WITHIN_S = 60.0
_LOG_LINES = 15
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Server:
    """A server that has started, and takes requests unless it has ended since."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def base_url(self) -> str:
        return f"http://{_HOST}:{self.port}"

    def status(self, path: str) -> int | None:
        """Return the status that GET answers, or None when nobody answers."""
        connection = HTTPConnection(_HOST, self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def memory_mb(self) -> float | None:
        """Return the resident memory, or None where there is no /proc."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)

    def last_log_lines(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (it logged nothing)"

    def raise_if_ended(self, within_s: float = 0) -> None:
        """Raise ``DemoFailed`` if the process has ended, or ends in the time given."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return
        if code < 0:
            happened = f"The server was killed by {Signals(-code).name}."
            remedy = "Something else ended it, perhaps for want of memory: free about 1 GB and try again."
        else:
            happened = f"The server ended with exit code {code}."
            remedy = "Mend what the log names; if it says that the address is in use, just try again."
        raise DemoFailed(f"{happened} Its last log lines:\n{self.last_log_lines()}", remedy)


@contextmanager
def serving(*, plugin: bool) -> Iterator[Server]:
    """Serve the example app with the plugin on or off; the process is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="example-app-") as directory:
        log = Path(directory) / "server.log"
        port = _free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - the command is our own
                _command(port),
                cwd=_ROOT,
                env=environment(os.environ, plugin=plugin),
                stdout=output,
                stderr=output,
            )
        try:
            server = Server(process, port, log)
            _wait_until_ready(server)
            _ensure_mode(server, plugin=plugin)
            yield server
        finally:
            end(process)


def environment(inherited: Mapping[str, str], *, plugin: bool) -> dict[str, str]:
    """Return the child's variables: the shell's own, without what would change uvicorn's command line."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name != "WEB_CONCURRENCY" and not name.startswith("UVICORN_")
    }
    return kept | {"ASGI_MLPERF_ENABLED": "true" if plugin else "false"}


def _command(port: int) -> list[str]:
    options = ["--host", _HOST, "--port", str(port), "--log-level", "warning", "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", "example_app.main:app", *options]


def _free_port() -> int:
    try:
        with socket.create_server((_HOST, 0)) as listener:
            port: int = listener.getsockname()[1]
    except OSError as error:
        raise DemoFailed(
            f"No port of {_HOST} could be opened: {error}.",
            "Allow this user to listen on the loopback address (a sandbox or container may forbid it).",
        ) from error
    return port


def _wait_until_ready(server: Server) -> None:
    deadline = monotonic() + _READY_WITHIN_S
    while server.status("/") != 200:
        server.raise_if_ended()
        if monotonic() > deadline:
            raise DemoFailed(
                f"The server was not ready within {_READY_WITHIN_S:.0f} s. Its last log lines:\n"
                f"{server.last_log_lines()}",
                "Close other heavy programs and try again, or look at it with `make serve`.",
            )
        sleep(0.05)


def _ensure_mode(server: Server, *, plugin: bool) -> None:
    status, wanted = server.status("/readyz"), 200 if plugin else 404
    if status != wanted:
        raise DemoFailed(
            f"With the plugin {'on' if plugin else 'off'}, GET /readyz answered {status}, not {wanted}.",
            "The two runs would not differ as they should: check what example_app/main.py installs.",
        )


def end(process: subprocess.Popen[bytes], within_s: float = 10.0) -> None:
    """Ask the process to end, then make it."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also when a second Ctrl-C cuts the wait short
        if process.poll() is None:
            process.kill()
            process.wait()
