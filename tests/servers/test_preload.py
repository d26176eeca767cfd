"""gunicorn forks its workers from a process whose OpenMP threads they do not have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.servers.serving import COMMANDS, serving

COMMAND = COMMANDS["gunicorn --preload"].replace("served:app", "preloaded:app")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway")
def test_a_model_that_ran_before_the_fork_answers_in_the_workers_which_say_what_to_do(tmp_path):
    shutil.copy(Path(__file__).with_name("preloaded.py"), tmp_path)
    with serving(COMMAND, tmp_path, environ={"ASGI_MLPERF_WORKERS": "1"}) as server:
        for path in ("/async", "/def", "/run"):
            answer = server.get(path)
            assert (answer.status, answer.json != server.process.pid) == (200, True)
        assert "start without --preload" in server.output
