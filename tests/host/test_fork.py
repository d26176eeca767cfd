"""A model that ran before the fork leaves OpenMP waiting for threads that the child does not have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, os, signal, sys
import torch
from starlette.applications import Starlette
from asgi_mlperf import Plugin, Settings

m = torch.ones(600, 600)
torch.set_num_threads(2)
torch.tanh(m) @ m

plugin = Plugin(Settings())

async def main():
    async with plugin.lifespan(Starlette()):
        (torch.tanh(m) @ m).sum()
        await plugin.run(lambda: (torch.tanh(m) @ m).sum())

child = os.fork()
if not child:
    signal.alarm(int(sys.argv[1]))
    asyncio.run(main())
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def exit_code(**environ: str) -> str:
    variables = {**os.environ, "ASGI_MLPERF_THREADS__CPUS": "2", "ASGI_MLPERF_WORKERS": "1", **environ}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, "4" if environ else "30"],
        env={**variables, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("--preload" in ran.stderr) is (environ == {}), ran.stderr
    return ran.stdout.strip()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway")
def test_ops_in_a_forked_worker_end_on_the_event_loop_and_in_inference_threads():
    assert exit_code() == "0"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway")
def test_without_the_plugin_they_hang():
    assert exit_code(ASGI_MLPERF_ENABLED="false") == str(-signal.SIGALRM)
