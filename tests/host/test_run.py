from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from uvicorn.importer import import_from_string

from asgi_mlperf.cli import main, run
from asgi_mlperf.settings import Settings
from asgi_mlperf.wire.coalescing import CoalescingProtocol

COALESCING = "asgi_mlperf.wire.coalescing:CoalescingProtocol"


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(arguments)


def plan(*arguments: str, environ=None, find=lambda name: None, **settings):
    return run.plan(options(*arguments), Settings(threads={"cpus": 4}, **settings), environ or {}, find)


@pytest.mark.parametrize(
    ("server", "own"),
    [
        ("uvicorn", ["--http", COALESCING]),
        ("gunicorn", ["--worker-class", "uvicorn_worker.UvicornWorker"]),
        ("granian", ["--interface", "asgi"]),
        ("hypercorn", []),
    ],
)
def test_the_users_own_server_gets_the_workers_and_its_own_arguments(server, own):
    command, _, _ = plan("--workers", "2", "--server", server, "--", "app:app", "--port", "80")
    assert command == [sys.executable, "-m", server, *own, "--workers", "2", "app:app", "--port", "80"]


def test_a_worker_class_of_the_users_is_kept():
    command, _, _ = plan("--server", "gunicorn", "--", "-k", "my.Worker", "app:app")
    assert command[3:] == ["-k", "my.Worker", "app:app"]


def test_what_libraries_read_when_they_are_loaded_is_set_to_a_workers_share():
    _, variables, summary = plan("--workers", "2", "--", "app:app")
    per_worker = max(1, min(2, len(os.sched_getaffinity(0)) // 2))
    assert variables["OMP_NUM_THREADS"] == variables["OPENBLAS_NUM_THREADS"] == str(per_worker)
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
    assert variables["ASGI_MLPERF_WORKERS"] == "2"
    assert summary.startswith("asgi-mlperf run: 4 CPUs (setting), 2 workers (setting)")
    assert "\n" not in summary


def test_workers_among_the_servers_own_arguments_count():
    command, variables, _ = plan("--", "app:app", "--workers", "3")
    assert variables["ASGI_MLPERF_WORKERS"] == "3"
    assert command.count("--workers") == 1


def test_workers_that_cannot_be_known_are_not_claimed():
    _, variables, summary = plan("--server", "gunicorn", "--", "-c", "conf.py", "app:app")
    assert "ASGI_MLPERF_WORKERS" not in variables
    assert "unknown" in summary


def test_what_is_set_already_is_left_alone_and_named():
    _, variables, summary = plan("--", "app:app", environ={"OMP_NUM_THREADS": "7"})
    assert "OMP_NUM_THREADS" not in variables
    assert "left as set: OMP_NUM_THREADS" in summary


@pytest.mark.parametrize("policy", ["PASSIVE", "ACTIVE"])
def test_how_threads_wait_is_left_to_the_user_altogether(policy):
    _, variables, summary = plan("--", "app:app", environ={"OMP_WAIT_POLICY": policy})
    assert variables.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
    assert "left as set: OMP_WAIT_POLICY" in summary


@pytest.mark.parametrize(
    "told",
    [
        {"MALLOC_TRIM_THRESHOLD_": "0"},
        {"MALLOC_ARENA_MAX": "8"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"},
    ],
)
def test_heaps_are_left_to_the_user_altogether(told):
    _, variables, summary = plan("--", "app:app", environ=told)
    assert not any(name.startswith("MALLOC_") for name in variables)
    assert f"left as set: {next(iter(told))}" in summary


def test_few_heaps_keep_what_requests_free_unless_switched_off():
    _, variables, _ = plan("--workers", "4", "--", "app:app")
    assert variables["MALLOC_ARENA_MAX"] == "2"
    assert int(variables["MALLOC_TRIM_THRESHOLD_"]) == 2 * int(variables["MALLOC_MMAP_THRESHOLD_"]) > 0
    off = Settings(threads={"keep_freed_memory": False})
    _, variables, _ = run.plan(options("--", "app:app"), off, {}, lambda _name: None)
    assert not any(name.startswith("MALLOC_") for name in variables)


@pytest.mark.parametrize("off", [{"enabled": False}, {"threads": {"enabled": False}}])
def test_what_is_switched_off_is_not_set(off):
    command, variables, _ = run.plan(options("--", "app:app"), Settings(**off), {}, lambda _name: None)
    assert variables.keys() <= {"ASGI_MLPERF_WORKERS"}
    assert ("--http" in command) is ("enabled" not in off)


def test_uvicorn_writes_each_response_at_once():
    command, _, summary = plan("--workers", "2", "--", "app:app")
    assert command[3] == "--http"
    assert import_from_string(command[4]) is CoalescingProtocol
    assert command[5:] == ["--workers", "2", "app:app"]
    assert "a write for each response" in summary


def writes_at_once(*arguments: str, **more: Any) -> bool:
    command, variables, summary = plan(*arguments, **more)
    assert "UVICORN_HTTP" not in variables  # children of the app may have another uvicorn
    says_so = "a write for each response" in summary
    assert (COALESCING in command) is says_so
    return says_so


@pytest.mark.parametrize("chosen", [["--http", "h11"], ["--http=httptools"]])
def test_an_http_implementation_that_is_chosen_is_kept(chosen):
    assert not writes_at_once("--", "app:app", *chosen)
    assert writes_at_once("--", "app:app", "--http2")


def test_an_http_implementation_in_the_environment_is_kept():
    assert not writes_at_once("--", "app:app", environ={"UVICORN_HTTP": "h11"})


@pytest.mark.parametrize("server", ["gunicorn", "hypercorn", "granian"])
def test_other_servers_write_as_they_do(server):
    assert not writes_at_once("--server", server, "--", "app:app")


@pytest.mark.parametrize(("version", "takes"), [("0.35.1", False), ("0.36.0", True), ("1.0", True)])
def test_a_uvicorn_that_takes_no_protocol_by_name_is_left_alone(monkeypatch, version, takes):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    assert writes_at_once("--", "app:app") is takes


def test_a_uvicorn_without_httptools_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert not writes_at_once("--", "app:app")


def test_an_allocator_is_preloaded_only_if_asked_and_found(tmp_path):
    found = tmp_path / "libjemalloc.so.2"
    _, variables, summary = plan("--", "app:app", find=lambda name: found)
    assert "LD_PRELOAD" not in variables
    _, variables, summary = plan(
        "--allocator", "jemalloc", "--", "app:app", find=lambda name: found, environ={"LD_PRELOAD": "mine.so"}
    )
    assert variables["LD_PRELOAD"] == f"{found} mine.so"
    _, variables, summary = plan("--allocator", "tcmalloc", "--", "app:app")
    assert "LD_PRELOAD" not in variables
    assert "tcmalloc not found" in summary


def test_an_allocator_is_found_where_distributions_put_it(monkeypatch, tmp_path):
    library = tmp_path / "x86_64-linux-gnu" / "libtcmalloc_minimal.so.4"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(run, "_LIBRARIES", (tmp_path / "none", tmp_path))
    assert run.find_allocator("tcmalloc") == library
    assert run.find_allocator("jemalloc") is None


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc/self/maps are Linux")
def test_the_server_has_the_allocator_from_its_start(tmp_path):
    mapped = Path("/proc/self/maps").read_text().split()
    library = tmp_path / "libjemalloc.so.2"  # stands for it: any library can be preloaded
    shutil.copy(next(path for path in mapped if "/libm.so" in path or "/libm-" in path), library)
    _, variables, _ = plan("--allocator", "jemalloc", "--", "app:app", find=lambda name: library)
    maps = "print(open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", maps], env=variables, capture_output=True, text=True, check=True
    )
    assert str(library) in done.stdout


def test_the_launcher_becomes_the_server(monkeypatch, capsys):
    became = {}
    monkeypatch.setattr(os, "execve", lambda path, command, environ: became.update(environ, command=command))
    assert main(["run", "--workers", "1", "--", "app:app"]) == 0
    assert became["command"][1:] == ["-m", "uvicorn", "--http", COALESCING, "--workers", "1", "app:app"]
    assert became["OMP_WAIT_POLICY"] == "PASSIVE"
    assert capsys.readouterr().err.startswith("asgi-mlperf run: ")


def test_a_server_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["run", "--server", "gunicorn", "--", "app:app"]) == 2
    assert "pip install gunicorn" in capsys.readouterr().err


def test_bad_settings_stop_the_launcher(monkeypatch, capsys):
    monkeypatch.setenv("ASGI_MLPERF_THREADS__NATIVE", "many")
    assert main(["run", "--", "app:app"]) == 2
    assert "ASGI_MLPERF_THREADS__NATIVE" in capsys.readouterr().err


def test_the_path_of_the_program_is_kept():
    assert Path(plan("--", "app:app")[0][0]) == Path(sys.executable)
