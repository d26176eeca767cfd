"""Clients that leave and handlers that fail: the app sees what it sees without the plugin."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.servers.serving import COMMANDS, PATIENCE_S, Server, serving
from websockets.sync.client import connect


def leave_a_stream(server: Server) -> None:
    with closing(server.request("/stream")) as client:
        client.recv(1)
        server.wait_for("stream waits")
    server.wait_for("stream ended")


def leave_server_sent_events(server: Server) -> None:
    with closing(server.request("/events")) as client:
        client.recv(1)
    server.wait_for("events ended")


def leave_a_model_call(server: Server) -> None:
    with closing(server.request("/left?name=it")):
        function = server.at_gate()
    function.let_through()
    server.wait_for("handler ended")


def leave_a_bare_app(server: Server) -> None:
    with closing(server.request("/bare/")):
        server.wait_for("received")
    server.wait_for("sent")


def say_goodbye_to_a_websocket(server: Server) -> str | bytes:
    with connect(f"ws://127.0.0.1:{server.port}/echo") as websocket:
        websocket.send("hello")
        echoed = websocket.recv()
        websocket.close(4001)
    server.wait_for("websocket left")
    return echoed


def drop_a_websocket(server: Server) -> None:
    websocket = connect(f"ws://127.0.0.1:{server.port}/echo")
    websocket.socket.close()
    server.wait_for("websocket left")


def fail_before_the_response(server: Server) -> Any:
    return server.get("/fail-early")


def fail_after_the_response_started(server: Server) -> Any:
    with closing(server.connect()) as connection:
        connection.request("GET", "/fail-late")
        response = connection.getresponse()
        try:
            return response.status, response.read()
        except http.client.IncompleteRead as error:
            return response.status, "cut off", error.partial


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        leave_a_stream,
        leave_server_sent_events,
        leave_a_model_call,
        leave_a_bare_app,
        say_goodbye_to_a_websocket,
        drop_a_websocket,
        fail_before_the_response,
        fail_after_the_response_started,
    )
}
SERVERS = ("uvicorn", "asgi-mlperf run", "hypercorn -w 0", "granian")


def seen(name: str, directory: Path, *, plugin: bool) -> dict[str, Any]:
    """Return what client and app saw in each scenario."""
    found: dict[str, Any] = {}
    with serving(COMMANDS[name], directory, plugin=plugin) as server:
        for title, scenario in SCENARIOS.items():
            server.read_events().clear()
            answer = scenario(server)
            events = [{key: value for key, value in event.items() if key != "pid"} for event in server.events]
            found[title] = answer, events
    return found


@pytest.fixture(scope="module", params=SERVERS)
def views(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    directory = tmp_path_factory.mktemp("departures")
    with ThreadPoolExecutor(2) as both:
        plugin = both.submit(seen, request.param, directory / "plugin", plugin=True)
        stock = both.submit(seen, request.param, directory / "stock", plugin=False)
        return plugin.result(), stock.result()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_client_and_app_see_what_they_see_without_the_plugin(views, scenario):
    plugin, stock = views
    assert plugin[scenario] == stock[scenario]


def value_of(server: Server, series: str) -> float:
    """Return the value of a series, named with its labels as it is written."""
    lines = server.get("/metrics").body.splitlines()
    return next((float(line.removeprefix(series)) for line in lines if line.startswith(series + " ")), 0.0)


def becomes(server: Server, series: str, expected: float) -> bool:
    """Ask until ``series`` has the value, or for too long."""
    deadline = time.monotonic() + PATIENCE_S
    while value_of(server, series) != expected:
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.parametrize("name", SERVERS)
def test_requests_end_when_their_clients_leave_and_slots_when_their_calls_end(name, tmp_path):
    with serving(COMMANDS[name], tmp_path) as server:
        with closing(server.request("/stream")) as stream, closing(server.request("/left?name=it")):
            stream.recv(1)
            function = server.at_gate()
            assert becomes(server, "http_server_active_requests", 2)
        server.wait_for("stream ended")
        assert becomes(server, "http_server_active_requests", 0)
        assert value_of(server, 'asgi_mlperf_inference_running{pool="default"}') == 1
        function.let_through()
        assert becomes(server, 'asgi_mlperf_inference_running{pool="default"}', 0)


def test_a_call_whose_stream_was_left_while_it_waited_is_never_run(tmp_path):
    with (
        serving(COMMANDS["uvicorn"], tmp_path, environ={"ASGI_MLPERF_POOL__THREADS": "1"}) as server,
        closing(server.request("/gated?name=first")),
    ):
        first = server.at_gate()
        with closing(server.request("/model-stream?name=second")):
            server.wait_for("model stream waits")
        assert server.wait_for("model stream ended")[0]["error"] == "CancelledError"
        with closing(server.request("/gated?name=third")):
            assert becomes(server, 'asgi_mlperf_inference_queue_length{pool="default"}', 1)
            first.let_through()
            third = server.at_gate()
            assert third.name == "third"
            third.let_through()


def test_a_call_whose_stream_was_left_while_it_ran_keeps_its_slot_until_it_ends(tmp_path):
    with serving(COMMANDS["uvicorn"], tmp_path, environ={"ASGI_MLPERF_POOL__THREADS": "1"}) as server:
        with closing(server.request("/model-stream?name=first")):
            first = server.at_gate()
        assert server.wait_for("model stream ended")[0]["error"] == "CancelledError"
        with closing(server.request("/gated?name=second")):
            assert becomes(server, 'asgi_mlperf_inference_queue_length{pool="default"}', 1)
            first.let_through()
            assert server.at_gate().name == "second"


def test_a_plain_call_whose_client_left_while_it_waited_is_never_run(tmp_path):
    with (
        serving(COMMANDS["uvicorn"], tmp_path, environ={"ASGI_MLPERF_POOL__THREADS": "1"}) as server,
        closing(server.request("/gated?name=first")),
    ):
        first = server.at_gate()
        with closing(server.request("/gated?name=second")):
            assert becomes(server, 'asgi_mlperf_inference_queue_length{pool="default"}', 1)
        abandoned = 'asgi_mlperf_inference_abandoned_total{pool="default",reason="client_left"}'
        assert becomes(server, abandoned, 1)
        with closing(server.request("/gated?name=third")):
            assert becomes(server, 'asgi_mlperf_inference_queue_length{pool="default"}', 1)
            first.let_through()
            third = server.at_gate()
            assert third.name == "third"
            third.let_through()
