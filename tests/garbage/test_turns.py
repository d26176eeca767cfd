from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from asgi_mlperf.garbage import turns
from asgi_mlperf.garbage.turns import HostTurns

HOLDER = """
import signal, sys, pathlib
from asgi_mlperf.garbage.turns import HostTurns
with HostTurns(pathlib.Path(sys.argv[1])).take() as mine:
    print(mine, flush=True)
    signal.pause()
"""


def test_one_worker_at_a_time_has_its_turn(tmp_path: Path):
    with HostTurns(tmp_path).take() as first, HostTurns(tmp_path).take() as second:
        assert (first, second) == (True, False)
    with HostTurns(tmp_path).take() as later:
        assert later


def test_a_worker_that_dies_gives_its_turn_back(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with HostTurns(tmp_path).take() as while_held:
            assert not while_held
        holder.send_signal(signal.SIGKILL)
    with HostTurns(tmp_path).take() as afterwards:
        assert afterwards


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path):
    target = tmp_path / "precious"
    (tmp_path / f"asgi-mlperf-gc-{os.getuid()}.lock").symlink_to(target)
    with HostTurns(tmp_path).take() as mine:
        assert mine
    assert not target.exists()


def test_without_a_place_for_the_file_it_is_always_ones_turn(tmp_path: Path):
    with HostTurns(tmp_path / "missing").take() as mine:
        assert mine


def test_without_locks_it_is_always_ones_turn(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(turns, "fcntl", None)
    with HostTurns(tmp_path).take() as first, HostTurns(tmp_path).take() as second:
        assert first
        assert second
