"""Several workers behind one port, and a worker that is replaced."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from tests.servers.serving import COMMANDS, PATIENCE_S, Server, serving

NAMES = ("uvicorn --workers 2", "gunicorn", "granian --workers 2")


def scrape_all(server: Server) -> dict[int, str]:
    """Scrape until each of two workers has answered."""
    scrapes: dict[int, str] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(scrapes) < 2 and time.monotonic() < deadline:
        text = server.get("/metrics").body
        scrapes[int(float(re.findall(r"^served_pid (\S+)$", text, re.MULTILINE)[0]))] = text
    return scrapes


def answered_by_two(server: Server, path: str) -> Counter[int]:
    """Ask until each of two workers has answered; return how many requests each took."""
    answers: Counter[int] = Counter()
    deadline = time.monotonic() + PATIENCE_S
    while len(answers) < 2 and time.monotonic() < deadline:
        answers[server.get(path).json["pid"]] += 1
    return answers


def requests_in(text: str, route: str) -> float:
    counts = re.findall(
        rf'^http_server_request_duration_seconds_count{{.*http_route="{route}".*}} (\S+)$', text, re.MULTILINE
    )
    return sum(map(float, counts))


@pytest.mark.parametrize("name", NAMES)
def test_each_worker_answers_with_its_own_metrics(name, tmp_path):
    with serving(COMMANDS[name], tmp_path) as server:
        workers = {event["pid"] for event in server.wait_for("startup", 2)}
        answers = answered_by_two(server, "/pid")
        scrapes = scrape_all(server)
        assert scrapes.keys() == answers.keys() == workers
        assert {pid: requests_in(text, "/pid") for pid, text in scrapes.items()} == answers


@pytest.mark.parametrize("name", NAMES)
def test_with_a_multiprocess_directory_one_scrape_holds_the_sum_of_both_workers(name, tmp_path):
    directory = tmp_path / "metrics"
    directory.mkdir()
    with serving(COMMANDS[name], tmp_path, environ={"PROMETHEUS_MULTIPROC_DIR": str(directory)}) as server:
        server.wait_for("startup", 2)
        answers = answered_by_two(server, "/pid")
        assert len(answers) == 2
        deadline = time.monotonic() + PATIENCE_S
        while (total := requests_in(server.get("/metrics").body, "/pid")) < answers.total():
            assert time.monotonic() < deadline, f"{total} of {answers.total()}"
        assert total == answers.total()


@pytest.mark.parametrize("name", ["uvicorn --workers 2", "gunicorn"])
def test_a_killed_workers_counts_stay_until_the_server_is_started_anew(name, tmp_path):
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    (tmp_path / "metrics").mkdir()
    with serving(COMMANDS[name], tmp_path, environ=environ) as server:
        victim = server.wait_for("startup", 2)[0]["pid"]
        answers = answered_by_two(server, "/pid")
        os.kill(victim, signal.SIGKILL)
        server.wait_for("startup", 3)
        text = server.get("/metrics").body
        assert requests_in(text, "/pid") == answers.total()
        assert "http_server_active_requests 0.0" in text
        assert float(re.findall(r"^asgi_mlperf_memory_rss_bytes (\S+)$", text, re.MULTILINE)[0]) > 0
        assert not (tmp_path / "metrics" / f"gauge_livesum_{victim}.db").exists()
        server.terminate()
        server.exit_status()
    with serving(COMMANDS[name], tmp_path, environ=environ) as server:
        server.wait_for("startup", 2)
        assert requests_in(server.get("/metrics").body, "/pid") == 0


def change(file: Path, old: str, new: str, *, seen_by: Server) -> None:
    """Change a file until the reloader says so: from when on it looks, it does not report."""
    file.write_text(file.read_text().replace(old, new))
    for later_s in (1, 2, 3, 4, 5):
        os.utime(file, ns=(time.time_ns(), time.time_ns() + later_s * 10**9))
        with suppress(AssertionError):
            return seen_by.wait_for_output("Reloading", patience_s=PATIENCE_S / 5)
    raise AssertionError(f"no change of {file} was seen\n{seen_by.output}")


def test_a_changed_file_reloads_the_app(tmp_path):
    with serving(COMMANDS["uvicorn --reload"], tmp_path) as server:
        (before,) = server.wait_for("startup")
        assert server.get("/double?number=21").body == "42"
        change(tmp_path / "served.py", "number * 2", "number * 20", seen_by=server)
        after = server.wait_for("startup", 2)[1]
        assert server.wait_for("shutdown")[0]["pid"] == before["pid"] != after["pid"]
        assert server.get("/double?number=21").body == "420"
        assert server.get("/readyz").status == 200
        server.terminate()
        server.exit_status()
        assert server.wait_for("shutdown", 2)[1]["pid"] == after["pid"]
        assert not re.search(
            r"Traceback|never awaited|Task was destroyed|Event loop is closed", server.output
        )
