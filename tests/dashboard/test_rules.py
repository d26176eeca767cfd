"""The rules as Prometheus itself reads them: ``promtool`` of the package prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asgi_mlperf.telemetry.dashboard import rules

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt install prometheus"
)
TARGETS = rules.Targets(latency_s=0.5, error_ratio=0.02)
ALERTS = {alert.name: alert for alert in rules.alerts(TARGETS)}
WORKER = 'job="api",instance="a:80"'


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def requests(per_minute: str, status: int = 200) -> dict[str, str]:
    labels = f'{{{WORKER},http_route="/",http_request_method="GET",http_response_status_code="{status}"}}'
    return {f"http_server_request_duration_seconds_count{labels}": per_minute}


def histogram(name: str, labels: str, *, fast: int, slow: int, bound: str) -> dict[str, str]:
    """Per minute, so many within 1 ms and so many more within ``bound`` seconds."""
    buckets = {"0.001": fast, bound: fast + slow, "+Inf": fast + slow}
    return {f'{name}_bucket{{{WORKER},{labels}le="{le}"}}': f"0+{count}x120" for le, count in buckets.items()}


def waiting(seconds_per_minute: int, running: int, *, calls: int = 60) -> dict[str, str]:
    labels = f'{{{WORKER},pool="default"}}'
    return {
        f"asgi_mlperf_inference_queue_seconds_sum{labels}": f"0+{seconds_per_minute}x120",
        f"asgi_mlperf_inference_queue_seconds_count{labels}": f"0+{calls}x120",
        f"asgi_mlperf_inference_run_seconds_sum{labels}": f"0+{running}x120",
        f"asgi_mlperf_inference_run_seconds_count{labels}": f"0+{calls}x120",
    }


def refused(per_minute: int, reason: str) -> dict[str, str]:
    return {f'asgi_mlperf_refused_total{{{WORKER},pool="default",reason="{reason}"}}': f"0+{per_minute}x120"}


def at_work(*, running: int, threads: int, cpus: int) -> dict[str, str]:
    return {
        f'asgi_mlperf_inference_running{{{WORKER},pool="default"}}': f"{running}x120",
        f'asgi_mlperf_native_threads{{{WORKER},library="torch"}}': f"{threads}x120",
        f"asgi_mlperf_cpu_budget_cores{{{WORKER}}}": f"{cpus}x120",
    }


@dataclass(frozen=True)
class Case:
    """An alert, series that set it off, series that do not, and what it says when it fires."""

    alert: str
    fires: dict[str, str]
    silent: dict[str, str]
    summary: str
    labels: dict[str, str]
    value: str = ""


JOB = {"job": "api"}
POOL = {"job": "api", "pool": "default"}
INSTANCE = {"job": "api", "instance": "a:80"}
DURATION, PAUSES = "http_server_request_duration_seconds", "asgi_mlperf_gc_pause_seconds"
LAG = "asgi_mlperf_event_loop_lag_seconds"
SHARE = f"asgi_mlperf_gc_share_ratio{{{WORKER}}}"
VALVE = f'asgi_mlperf_gc_valve_openings_total{{{WORKER},reason="memory"}}'
LIMIT = f"asgi_mlperf_memory_limit_bytes{{{WORKER}}}"
CASES = [
    Case(
        "ASGIMLPerfLatency",
        requests("0+60x120") | histogram(DURATION, "", fast=50, slow=10, bound="1"),
        requests("0+60x120") | histogram(DURATION, "", fast=50, slow=10, bound="0.5"),
        "api: p99 is 940.1ms",
        JOB,
    ),
    Case(
        "ASGIMLPerfTraffic",
        requests("0+60x60 3600x60"),
        requests("0+60x120"),
        "api: no requests any more",
        JOB,
    ),
    Case(
        "ASGIMLPerfErrors",
        requests("0+60x120") | requests("0+20x120", 503),
        requests("0+60x120") | requests("0+20x120", 404),
        "api: 25% of requests fail",
        JOB,
    ),
    Case("ASGIMLPerfSaturation", waiting(60, 6), waiting(6, 6), "api: calls to default wait 1s", POOL),
    Case(
        "ASGIMLPerfOverload",
        waiting(0, 6, calls=30) | refused(10, "queue_full"),
        waiting(0, 6, calls=30) | refused(10, "shutting_down"),
        "api: 25% of calls to default are refused",
        POOL,
    ),
    Case(
        "ASGIMLPerfGarbagePauses",
        histogram(PAUSES, 'where="request",', fast=0, slow=10, bound="0.101"),
        histogram(PAUSES, 'where="idle",', fast=0, slow=10, bound="0.101"),
        "api: collections stop requests for 100ms",
        JOB,
    ),
    Case(
        "ASGIMLPerfGarbageShare",
        {SHARE: "0.1x120"},
        {SHARE: "0.01x120"},
        "a:80: 10% of the time goes to the collector",
        INSTANCE,
    ),
    Case(
        "ASGIMLPerfMemoryValve",
        {VALVE: "0+1x120"},
        {VALVE: "3x120"},
        "a:80: memory outgrows the garbage schedule",
        INSTANCE,
        value="15",
    ),
    Case(
        "ASGIMLPerfEventLoop",
        histogram(LAG, 'cause="other",', fast=0, slow=600, bound="1.001"),
        histogram(LAG, 'cause="gc",', fast=0, slow=600, bound="1.001"),
        "api: the event loop is 991ms late",
        JOB,
    ),
    Case(
        "ASGIMLPerfOversubscribed",
        at_work(running=4, threads=2, cpus=4),
        at_work(running=4, threads=1, cpus=4),
        "a:80: 2 threads at work for each CPU",
        INSTANCE,
    ),
    Case(
        "ASGIMLPerfMemory",
        {f"asgi_mlperf_memory_rss_bytes{{{WORKER}}}": "95x120", LIMIT: "100x120"},
        {f"asgi_mlperf_memory_rss_bytes{{{WORKER}}}": "95x120"},
        "a:80: 95% of the memory limit is in use",
        INSTANCE,
    ),
    Case(
        "ASGIMLPerfNotReady",
        {f"asgi_mlperf_ready{{{WORKER}}}": "0x120"},
        {f"asgi_mlperf_ready{{{WORKER}}}": "1x120"},
        "api: no worker is ready",
        JOB,
    ),
]


def test_every_alert_has_a_case():
    assert [case.alert for case in CASES] == list(ALERTS)


def test_the_rules_are_well_formed(tmp_path):
    file = tmp_path / "rules.yml"
    file.write_text(rules.text())
    promtool("check", "rules", "--lint-fatal", str(file))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_after_its_time_says_what_is_wrong_and_is_silent_otherwise(case, tmp_path):
    (tmp_path / "rules.yml").write_text(rules.text(TARGETS))
    alert = ALERTS[case.alert]
    firing = {
        "exp_labels": {"severity": alert.severity, **case.labels},
        "exp_annotations": {
            "summary": case.summary,
            "description": alert.description.replace("{{ $value | humanize }}", case.value),
        },
    }
    trial(tmp_path, case, case.fires, firing)
    trial(tmp_path, case, case.silent, None)


def trial(directory: Path, case: Case, series: dict[str, str], firing: dict[str, Any] | None) -> None:
    """Let promtool play two hours of ``series`` and compare what fires with what should."""
    expected = {"alertname": case.alert, "eval_time": "110m", "exp_alerts": [firing] if firing else []}
    early = {"alertname": case.alert, "eval_time": "1m", "exp_alerts": []}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [early, expected],
    }
    file = directory / "test.yml"
    file.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(file))
