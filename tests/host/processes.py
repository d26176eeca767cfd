"""Fresh processes of Python, side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from asgi_mlperf.host.environment import COUNTS

_PATH = os.pathsep.join(str(Path(__file__).parents[2] / folder) for folder in (".", "src"))


def outputs(commands: Mapping[str, Sequence[str]], **environ: str) -> dict[str, tuple[str, str]]:
    """Return what each of ``commands`` wrote to its two outputs, the budget being one CPU."""
    inherited = {name: text for name, text in os.environ.items() if name not in COUNTS}
    settings = {
        "ASGI_MLPERF_THREADS__CPUS": "1",
        "ASGI_MLPERF_THREADS__SELF_CHECK": "false",
        "ASGI_MLPERF_GC__MODE": "off",  # a collection at start and one at the end take their time
    }
    processes = {
        key: subprocess.Popen(
            [sys.executable, *command],
            env={**inherited, **settings, **environ, "PYTHONPATH": _PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for key, command in commands.items()
    }
    try:
        return {key: process.communicate(timeout=100) for key, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
