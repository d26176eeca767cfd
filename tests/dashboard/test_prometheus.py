"""Every panel and every recording rule, asked of a Prometheus that scrapes two workers."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.servers.serving import COMMANDS, PATIENCE_S, Response, Server, get, serving
from websockets.sync.client import connect

from asgi_mlperf.host.memory import memory_limit
from asgi_mlperf.telemetry.dashboard import rules
from asgi_mlperf.telemetry.dashboard.grafana import SECTIONS
from asgi_mlperf.telemetry.dashboard.panels import Panel

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs a Prometheus: apt install prometheus"
)
PANELS = {panel.title: panel for section in SECTIONS for panel in section.panels}
RECORDED = [recording.name for recording in rules.recordings()]
WINDOW = {"$__rate_interval": "5s", "$job": ".*", "$instance": ".*"}


def asked(panel: Panel) -> list[str]:
    """Return what a panel asks for, but for a memory limit where there is none."""
    expressions = [query.expression for query in panel.queries]
    return [each for each in expressions if "memory_limit" not in each or memory_limit() is not None]


class Prometheus:
    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[float]:
        """Return every number of the answer."""
        for variable, value in WINDOW.items():
            expression = expression.replace(variable, value)
        response = self.get("/api/v1/query?query=" + quote(expression))
        values = [float(each["value"][1]) for each in response.json["data"]["result"]]
        return [value for value in values if not math.isnan(value)]

    def is_ready(self) -> bool:
        try:
            return self.get("/-/ready").status == 200
        except ConnectionRefusedError:
            return False

    def get(self, path: str) -> Response:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)) as connection:
            return get(connection, path)


@contextmanager
def scraping(port: int, directory: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ``port`` five times a second, with our rules."""
    (directory / "rules.yml").write_text(rules.text())
    often = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config = {
        "global": often,
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "app", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        own_port = probe.getsockname()[1]
    command = [
        "prometheus",
        f"--web.listen-address=127.0.0.1:{own_port}",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
    ]
    with (directory / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            prometheus, deadline = Prometheus(own_port), time.monotonic() + PATIENCE_S
            while not prometheus.is_ready():
                assert time.monotonic() < deadline, output.name
            yield prometheus
        finally:
            process.kill()
            process.wait()


def crowd(server: Server) -> None:
    """Send more calls than slots and places to both workers; some are refused, some are too late."""
    waiting = [server.request("/hurried") for _ in range(8)]
    for connection in waiting:
        connection.recv(1)
        connection.close()


def load(server: Server) -> None:
    for path in ("double?number=1", "triple?number=1", "later", "parts", "encoded", "collecting", "nowhere"):
        server.get(f"/{path}")
    with connect(f"ws://127.0.0.1:{server.port}/echo") as websocket:
        websocket.send("hello")
        websocket.recv()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What each expression gave, once it gave anything; and the last scrape."""
    directory = tmp_path_factory.mktemp("prometheus")
    (directory / "metrics").mkdir()
    environ = {
        "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
        "SERVED_LIBRARY": "numpy",  # whose native threads are counted
        "ASGI_MLPERF_POOL__THREADS": "1",
        "ASGI_MLPERF_POOL__MAX_QUEUE": "1",
    }
    missing = {expression for panel in PANELS.values() for expression in asked(panel)} | set(RECORDED)
    found: dict[str, list[float]] = {}
    with serving(COMMANDS["uvicorn --workers 2"], directory, environ=environ) as server:
        server.wait_for("startup", 2)
        with scraping(server.port, directory) as prometheus:
            deadline = time.monotonic() + PATIENCE_S
            while missing and time.monotonic() < deadline:
                load(server)
                crowd(server)
                found |= {query: values for query in missing if (values := prometheus.query(query))}
                missing -= found.keys()
        linted = subprocess.run(
            ["promtool", "check", "metrics"],
            input=server.get("/metrics").body,
            capture_output=True,
            text=True,
            check=False,
        )
    return found | {linted.stdout + linted.stderr or "well-formed": [linted.returncode]}


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_has_data(title, answers):
    assert all(answers.get(expression) for expression in asked(PANELS[title]))


@pytest.mark.parametrize("name", RECORDED)
def test_every_recording_has_data(name, answers):
    assert answers.get(name)


def test_promtool_finds_nothing_wrong_with_a_scrape(answers):
    assert answers["well-formed"] == [0]
