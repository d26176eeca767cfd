"""Starts without a lifespan, with bad settings, and with the plugin switched off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.servers.serving import COMMANDS, Server, serving

WITHOUT_LIFESPAN = {
    "uvicorn": COMMANDS["uvicorn"] + " --lifespan off",
    "granian": COMMANDS["granian"].replace("--interface asgi", "--interface asginl"),
}
STOPS_AT_A_BROKEN_APP = ("uvicorn", "gunicorn", "hypercorn -w 0", "granian", "granian --workers 2")


@pytest.mark.parametrize("name", WITHOUT_LIFESPAN)
def test_without_a_lifespan_requests_pass_with_one_warning_that_names_the_fix(name, tmp_path):
    with serving(WITHOUT_LIFESPAN[name], tmp_path) as server:
        statuses = [server.get(path).status for path in ("/pid", "/pid", "/metrics", "/livez")]
        assert statuses == [200, 200, 404, 404]
        server.terminate()
        server.exit_status()
        warnings = [line for line in server.output.splitlines() if "asgi-mlperf" in line]
        assert len(warnings) == 1
        assert "its lifespan is not running" in warnings[0]
        assert "plugin.install(app)" in warnings[0]


@pytest.mark.parametrize("name", WITHOUT_LIFESPAN)
def test_without_a_lifespan_inference_fails_with_an_error_that_names_the_fix(name, tmp_path):
    with serving(WITHOUT_LIFESPAN[name], tmp_path) as server:
        assert server.get("/double?number=21").status == 500
        assert server.get("/triple?number=14").status == 500
        server.terminate()
        server.exit_status()
        errors = [line for line in server.output.splitlines() if "NotRunning: " in line]
        assert len(errors) == 2
        assert all("plugin.install(app)" in error for error in errors)


@pytest.mark.parametrize("name", STOPS_AT_A_BROKEN_APP)
def test_a_bad_setting_stops_the_start_and_says_what_the_variable_takes(name, tmp_path):
    with serving(COMMANDS[name], tmp_path, environ={"ASGI_MLPERF_POOL__THREADS": "zero"}) as server:
        assert server.exit_status() != 0
        errors = {line for line in server.output.splitlines() if "ASGI_MLPERF_" in line}
        assert len(errors) == 1
        assert "ASGI_MLPERF_POOL__THREADS='zero'" in (error := errors.pop())
        assert "takes whole number" in error
        assert server.read_events() == []


def test_an_unknown_setting_stops_the_start_and_says_the_nearest_name(tmp_path):
    with serving(COMMANDS["uvicorn"], tmp_path, environ={"ASGI_MLPERF_PULL__THREADS": "2"}) as server:
        assert server.exit_status() != 0
        errors = {line for line in server.output.splitlines() if "ASGI_MLPERF_" in line}
        assert errors == {
            "  ASGI_MLPERF_PULL__THREADS is not a setting; did you mean ASGI_MLPERF_POOL__THREADS?"
        }
        assert server.read_events() == []


def test_an_unknown_setting_of_a_known_section_is_reported_once(tmp_path):
    with serving(COMMANDS["uvicorn"], tmp_path, environ={"ASGI_MLPERF_POOL__THREAD": "2"}) as server:
        assert server.exit_status() != 0
        assert server.output.count("is not a setting") == 1


def answers(server: Server) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in ("/livez", "/metrics", "/double?number=21", "/triple?number=14", "/process", "/fail-early"):
        with closing(server.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() != "date"}
            found[path] = (response.status, headers, response.read())
    return found


@pytest.fixture
def answers_of(tmp_path: Path) -> Callable[..., dict[str, object]]:
    def answers_of(**how) -> dict[str, object]:
        with serving(COMMANDS["uvicorn"], tmp_path / str(len(how)), **how) as server:
            return answers(server)

    return answers_of


def test_a_plugin_that_is_switched_off_leaves_a_stock_app_in_a_stock_process(answers_of):
    off = answers_of(environ={"ASGI_MLPERF_ENABLED": "false"}, plugin=True)
    stock = answers_of(plugin=False)
    assert off == stock
    assert answers_of()["/process"] != stock["/process"]
