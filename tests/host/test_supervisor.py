from __future__ import annotations

import pytest

from asgi_mlperf.host.supervisor import SINGLE, UNKNOWN, workers_seen

SPAWNED = "python -c 'from multiprocessing.spawn import spawn_main' --multiprocessing-fork"


def seen(tree, own: str, parent: str = "bash", **environ: str):
    files = {
        "proc__self__cmdline": own.replace(" ", "\0") + "\0",
        "proc__self__status": "Name:\tpython\nPPid:\t77\n",
        "proc__77__cmdline": parent.replace(" ", "\0") + "\0",
    }
    return workers_seen(environ, tree("no_cgroup", **files))


@pytest.mark.parametrize(
    ("own", "parent", "count"),
    [
        (SPAWNED, "/venv/bin/python /venv/bin/uvicorn app:app --workers 3", 3),
        (SPAWNED, "python -m uvicorn app:app --workers=3 --port 80", 3),
        (SPAWNED, "python -X dev -m uvicorn app:app", 1),
        (SPAWNED, "/venv/bin/python /venv/bin/granian --interface asgi --workers 4 app:app", 4),
        (SPAWNED, "/venv/bin/python /venv/bin/fastapi run --workers 5", 5),
        (SPAWNED, "hypercorn -w2 app:app", 2),
        (
            "/usr/bin/gunicorn -k uvicorn_worker.UvicornWorker -w 6 app:app",
            "/usr/bin/gunicorn -w 6 app:app",
            6,
        ),
        ("gunicorn --workers=2 app:app -w 3", "gunicorn", 3),
        ("uvicorn app:app", "bash", 1),
    ],
)
def test_the_option_of_the_server_counts(tree, own, parent, count):
    found = seen(tree, own, parent)
    assert (found.count, found.known) == (count, True)


@pytest.mark.parametrize(
    ("parent", "environ", "count"),
    [
        ("uvicorn app:app", {"WEB_CONCURRENCY": "3"}, 3),
        ("uvicorn app:app", {"UVICORN_WORKERS": "2", "WEB_CONCURRENCY": "3"}, 2),
        ("uvicorn app:app --workers 4", {"WEB_CONCURRENCY": "3"}, 4),
        ("gunicorn app:app", {"GUNICORN_CMD_ARGS": "--workers 5 --preload"}, 5),
        ("gunicorn app:app", {"WEB_CONCURRENCY": "3"}, 3),
        ("gunicorn -w 2 app:app", {"GUNICORN_CMD_ARGS": "--workers 5"}, 2),
        ("granian app:app", {"GRANIAN_WORKERS": "3"}, 3),
        ("granian app:app", {"WEB_CONCURRENCY": "3"}, 1),
        ("hypercorn app:app", {"WEB_CONCURRENCY": "3"}, 1),
        ("my-launcher", {"WEB_CONCURRENCY": "3"}, 3),
        ("uvicorn app:app", {"WEB_CONCURRENCY": "many"}, 1),
    ],
)
def test_variables_count_as_each_server_heeds_them(tree, parent, environ, count):
    assert seen(tree, SPAWNED, parent, **environ).count == count


@pytest.mark.parametrize(
    ("own", "parent"),
    [
        (SPAWNED, "python main.py"),
        ("gunicorn: worker [app:app]", "gunicorn: master [app:app]"),
        ("gunicorn -c conf.py app:app", "gunicorn -c conf.py app:app"),
        (SPAWNED, "hypercorn --config file.toml app:app"),
        ("gunicorn -w lots app:app", "bash"),
    ],
)
def test_what_cannot_be_seen_is_said_to_be_unknown(tree, own, parent):
    assert seen(tree, own, parent) == UNKNOWN


def test_a_configuration_file_that_gunicorn_reads_by_itself_makes_it_unknown(tree):
    root = tree(
        "no_cgroup", **{"proc__self__cmdline": "gunicorn\0app:app\0", "proc__self__cwd__gunicorn.conf.py": ""}
    )
    assert workers_seen({}, root) == UNKNOWN


def test_a_process_that_no_server_started_is_alone(tree):
    assert seen(tree, "python -m pytest") == SINGLE


def test_without_proc_the_variable_counts_and_else_nothing_is_known(tmp_path):
    assert workers_seen({"WEB_CONCURRENCY": "2"}, tmp_path).count == 2
    assert workers_seen({}, tmp_path) == UNKNOWN
