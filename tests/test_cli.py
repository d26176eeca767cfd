from __future__ import annotations

import json
import subprocess
import sys

import pytest

from asgi_mlperf.cli import main, tables
from asgi_mlperf.settings import knobs


def test_config_shows_every_knob_with_value_default_and_origin(monkeypatch, capsys):
    monkeypatch.setenv("ASGI_MLPERF_POOL__THREADS", "3")
    assert main(["config"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) >= {knob.variable for knob in knobs()}
    assert lines["ASGI_MLPERF_POOL__THREADS"].split()[1:3] == ["3", "environment"]
    assert lines["ASGI_MLPERF_GC__MODE"].split()[1:4] == ["scheduled", "scheduled", "default"]


def test_config_as_json(monkeypatch, capsys):
    monkeypatch.setenv("ASGI_MLPERF_METRICS__BUCKETS", "1,2")
    assert main(["config", "--json"]) == 0
    found = {knob["variable"]: knob for knob in json.loads(capsys.readouterr().out)}
    assert found["ASGI_MLPERF_METRICS__BUCKETS"]["value"] == [1.0, 2.0]
    assert found["ASGI_MLPERF_METRICS__BUCKETS"]["origin"] == "environment"
    assert found["ASGI_MLPERF_WORKERS"] == {
        "variable": "ASGI_MLPERF_WORKERS",
        "value": None,
        "default": None,
        "origin": "default",
        "takes": "whole number",
        "description": found["ASGI_MLPERF_WORKERS"]["description"],
    }


@pytest.mark.parametrize("command", ["config", "doctor"])
def test_unusable_settings_are_told_and_exit_2(monkeypatch, capsys, command):
    monkeypatch.setenv("ASGI_MLPERF_POOL__THREADS", "none")
    assert main([command]) == 2
    captured = capsys.readouterr()
    assert "ASGI_MLPERF_POOL__THREADS='none'" in captured.err
    assert captured.out == ""


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: the doctor loads libraries and caps them."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "asgi_mlperf", "doctor", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )


def test_doctor_reports_the_budget_the_caps_and_the_versions():
    report = json.loads(doctor("--json", ASGI_MLPERF_THREADS__CPUS="2", ASGI_MLPERF_WORKERS="2").stdout)
    assert report["cpu"]["CPUs for all workers"] == "2 (setting)"
    assert report["cpu"]["CPUs of this worker"] == 1
    assert report["native threads"]["caps hold"] == "yes"
    assert report["native threads"]["torch, capped"] == 1
    assert report["native threads"]["torch convolution in a fresh thread starts"] == "0 more"
    assert report["garbage"]["enabled"] is True
    assert report["versions"]["python"] == sys.version.split()[0]
    assert report["advice"] == []


def test_doctor_prints_tables_and_advice():
    text = doctor(ASGI_MLPERF_GC__MODE="off").stdout
    for section in ("cpu", "memory", "native threads", "garbage", "versions", "advice"):
        assert f"\n{section}" in f"\n{text}"
    assert "ASGI_MLPERF_GC__MODE=off" in text
    assert "ASGI_MLPERF_WORKERS" in text


def test_plain_tables_line_up():
    assert tables.plain(("a", "long head"), [["1", "2"], ["longer", "3"]]).splitlines() == [
        "a       long head",
        "------  ---------",
        "1       2",
        "longer  3",
    ]


def test_markdown_tables_keep_bars_in_their_cells():
    assert tables.markdown(("a",), [["x|y"]]).splitlines() == ["| a |", "| --- |", "| x\\|y |"]
