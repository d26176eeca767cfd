"""Every server's whole life with the plugin, beside its life without: start, requests, SIGTERM, end."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from tests.servers.serving import COMMANDS, WORKERS, Response, Server, get, serving

COMPLAINT = re.compile(
    r"Traceback|never awaited|Task was destroyed|loop is closed|Exception ignored|Error|Warning|asgi-mlperf"
)
NO_RESPONSE = Response(0, "")
NO_SIGNAL_FOR_WORKERS = ("hypercorn", "hypercorn -k uvloop")  # only an event that hypercorn itself looks at


@dataclass
class Life:
    """What was seen of a server from its start to its end."""

    workers: int
    answers: dict[str, Response] = field(default_factory=dict)
    in_flight: Response = NO_RESPONSE
    exit_status: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    left_running: list[str] = field(default_factory=list)
    output: str = ""

    def pids(self, event: str) -> list[int]:
        return sorted(each["pid"] for each in self.events if each["event"] == event)

    @property
    def complaints(self) -> Counter[str]:
        lines = (re.sub(r"\d+", "0", line) for line in self.output.splitlines())
        return Counter(line for line in lines if COMPLAINT.search(line))


def live(name: str, directory: Path, *, plugin: bool) -> Life:
    life = Life(WORKERS.get(name, 1))
    with serving(COMMANDS[name], directory, plugin=plugin) as server:
        server.wait_for("startup", life.workers)
        if name.startswith(
            "granian"
        ):  # a worker that is told to stop before it has said this goes on for ever
            server.wait_for_output("Started worker", life.workers)
        for path in ("/livez", "/readyz", "/metrics", "/double?number=21", "/triple?number=14"):
            life.answers[path] = server.get(path)
        with closing(server.connect()) as busy:
            life.in_flight = response_across_a_signal(server, busy)
        life.exit_status = server.exit_status()
        life.left_running = server.left_running()
        life.events = server.read_events()
        life.output = server.output
    return life


def cut_short(path: str, directory: Path, *, plugin: bool) -> Life:
    """Live until a server that waits for no request is told to stop while one is on its way."""
    life = Life(1)
    command = COMMANDS["uvicorn"] + " --timeout-graceful-shutdown 0"
    environ = {"ASGI_MLPERF_HEALTH__DRAIN_MS": "100"}
    with serving(command, directory, plugin=plugin, environ=environ) as server:
        with closing(server.request(path)):
            if path == "/stream":
                server.wait_for("stream waits")
            else:
                server.at_gate()
            server.terminate()
            life.exit_status = server.exit_status()
        life.events = server.read_events()
        life.output = server.output
    return life


def response_across_a_signal(server: Server, busy: HTTPConnection) -> Response:
    """Send SIGTERM while a model function runs, and let the function end once the server winds down."""
    pid = get(busy, "/pid").json["pid"]
    busy.request("GET", "/gated?name=it")
    function = server.at_gate()
    with closing(idle_connection(server, pid)) as idle:
        server.terminate()
        with suppress(ConnectionResetError):
            idle.sock.recv(1)  # a server that winds down closes what is idle
    function.let_through()
    try:
        response = busy.getresponse()
        return Response(response.status, response.read().decode())
    except (OSError, HTTPException) as error:
        return Response(0, repr(error))


def idle_connection(server: Server, pid: int) -> HTTPConnection:
    """Return a connection to the worker ``pid`` with nothing on its way."""
    while True:
        connection = server.connect()
        if get(connection, "/pid").json["pid"] == pid:
            return connection
        connection.close()


@dataclass(frozen=True)
class Lives:
    name: str
    plugin: Life
    stock: Life


@pytest.fixture(scope="module", params=COMMANDS)
def lives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    directory = tmp_path_factory.mktemp("life")
    with ThreadPoolExecutor(2) as both:
        plugin = both.submit(live, request.param, directory / "plugin", plugin=True)
        stock = both.submit(live, request.param, directory / "stock", plugin=False)
        return Lives(request.param, plugin.result(), stock.result())


def test_a_server_starts_and_answers_health_metrics_and_inference(lives):
    answers = lives.plugin.answers
    assert answers["/livez"] == (200, '{"live":true,"reasons":[]}')
    assert answers["/readyz"] == (200, '{"ready":true,"reasons":[]}')
    assert answers["/metrics"].status == 200
    assert "http_server_active_requests 0.0" in answers["/metrics"].body
    assert answers["/double?number=21"] == (200, "42")
    assert answers["/triple?number=14"] == (200, "42")


def test_a_request_in_a_model_function_gets_its_answer_after_sigterm(lives):
    assert lives.stock.in_flight.status == 200, "the stock server drops it: nothing to compare"
    assert lives.plugin.in_flight.status == 200
    assert lives.plugin.in_flight.json["result"] == "it went through"


def test_readiness_is_off_after_sigterm_while_a_request_is_still_in_flight(lives):
    after = 200 if lives.name in NO_SIGNAL_FOR_WORKERS else 503
    assert lives.plugin.in_flight.json["readiness"] == [200, after]


def test_a_server_exits_as_it_does_without_the_plugin(lives):
    assert lives.plugin.exit_status == lives.stock.exit_status


def test_every_worker_runs_the_start_and_the_end_of_the_apps_lifespan(lives):
    assert len(lives.plugin.pids("startup")) == lives.plugin.workers
    assert lives.plugin.pids("shutdown") == lives.plugin.pids("startup")


def test_a_server_complains_of_nothing_that_it_does_not_complain_of_without_the_plugin(lives):
    assert not lives.plugin.complaints - lives.stock.complaints


def test_a_server_leaves_no_process_behind(lives):
    assert lives.plugin.left_running == []


def test_a_request_that_the_server_cancels_ends_as_it_does_without_the_plugin(tmp_path):
    plugin = cut_short("/stream", tmp_path / "plugin", plugin=True)
    stock = cut_short("/stream", tmp_path / "stock", plugin=False)
    assert plugin.exit_status == stock.exit_status
    happenings = [
        sorted((each["event"], each.get("error")) for each in life.events) for life in (plugin, stock)
    ]
    assert happenings[0] == happenings[1]
    assert plugin.complaints == stock.complaints


def test_a_model_function_that_never_returns_does_not_keep_the_server(tmp_path):
    life = cut_short("/gated?name=stuck", tmp_path, plugin=True)
    assert life.pids("shutdown") == life.pids("startup")
    assert life.output.count("1 calls to default still ran after the drain time") == 1
