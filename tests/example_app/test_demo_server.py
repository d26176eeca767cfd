from __future__ import annotations

import subprocess
import sys

import pytest
from example_app.demo import server
from example_app.demo.failure import DemoFailed
from example_app.demo.server import end, environment, serving

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
SERVES = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/" else {readyz})
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Start a small program in place of uvicorn."""
    monkeypatch.setattr(server, "_command", lambda port: [sys.executable, "-c", program, str(port)])


@pytest.mark.parametrize(("plugin", "readyz"), [(True, 200), (False, 404)])
def test_the_server_is_ready_when_the_block_begins_and_gone_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, *, plugin: bool, readyz: int
) -> None:
    command(monkeypatch, SERVES.format(readyz=readyz))
    with serving(plugin=plugin) as started:
        assert started.status("/") == 200
        assert started.memory_mb() is None or started.memory_mb()
        started.raise_if_ended()
    assert started.process.poll() is not None
    assert started.status("/") is None


def test_a_server_in_the_wrong_mode_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, SERVES.format(readyz=404))
    with pytest.raises(DemoFailed, match="plugin on, GET /readyz answered 404"), serving(plugin=True):
        pytest.fail("the block must not run")


def test_a_server_that_dies_is_reported_with_its_last_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "import sys; sys.exit('no such knob')")
    with pytest.raises(DemoFailed, match=r"exit code 1\. (?s:.*)no such knob"), serving(plugin=True):
        pytest.fail("the block must not run")


def test_a_server_that_was_killed_is_reported_with_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, SERVES.format(readyz=200))
    with serving(plugin=True) as started:
        started.process.kill()
        with pytest.raises(DemoFailed, match="killed by SIGKILL") as failed:
            started.raise_if_ended(within_s=5)
    assert "memory" in failed.value.remedy


def test_a_server_that_is_never_ready_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def end_noted(process: subprocess.Popen[bytes]) -> None:
        started.append(process)
        end(process)

    monkeypatch.setattr(server, "end", end_noted)
    monkeypatch.setattr(server, "_READY_WITHIN_S", 0.1)
    command(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(DemoFailed, match="not ready within"), serving(plugin=True):
        pytest.fail("the block must not run")
    assert started[0].poll() is not None


def test_the_server_ends_also_when_the_block_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, SERVES.format(readyz=200))
    with pytest.raises(KeyboardInterrupt), serving(plugin=True) as started:
        raise KeyboardInterrupt
    assert started.process.poll() is not None


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end(process, within_s=0.05)
        assert process.returncode == -9


def test_the_mode_is_set_and_nothing_of_the_shell_changes_uvicorn_s_options() -> None:
    inherited = {
        "PATH": "/bin",
        "WEB_CONCURRENCY": "4",
        "UVICORN_RELOAD": "1",
        "ASGI_MLPERF_ENABLED": "maybe",
    }
    assert environment(inherited, plugin=True) == {"PATH": "/bin", "ASGI_MLPERF_ENABLED": "true"}
    assert environment(inherited, plugin=False) == {"PATH": "/bin", "ASGI_MLPERF_ENABLED": "false"}
