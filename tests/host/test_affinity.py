from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asgi_mlperf.host.affinity import Placement, pinned, placement, worker_slot

FOUR = [[0, 4], [1, 5], [2, 6], [3, 7]]
CLAIM = """
import os, sys
from pathlib import Path
from asgi_mlperf.host.affinity import worker_slot
with worker_slot(2, Path(sys.argv[1])) as slot:
    print(slot, flush=True)
    sys.stdin.readline()
"""


def cpus_of(slot, workers, *, cores=FOUR, loop_core=False):
    place = placement(cores, slot, workers, loop_core=loop_core)
    return sorted(place.loop), sorted(place.others)


def test_slots_are_contiguous_whole_cores_and_cover_all():
    assert cpus_of(0, 2)[0] == [0, 1, 4, 5]
    assert cpus_of(1, 2)[0] == [2, 3, 6, 7]
    shares = [cpus_of(slot, 3)[0] for slot in range(3)]
    assert sorted(cpu for share in shares for cpu in share) == list(range(8))


def test_more_workers_than_cores_share_them():
    assert [cpus_of(slot, 8)[0] for slot in range(8)] == [
        [0, 4],
        [0, 4],
        [1, 5],
        [1, 5],
        [2, 6],
        [2, 6],
        [3, 7],
        [3, 7],
    ]


def test_the_event_loop_can_have_a_core_of_its_own_unless_there_is_only_one():
    assert cpus_of(0, 2, loop_core=True) == ([0, 4], [1, 5])
    assert cpus_of(0, 4, loop_core=True) == ([0, 4], [0, 4])


def claim(directory):
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def slot_of(process):
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_replacement_takes_the_slot_of_a_worker_that_crashed(tmp_path):
    first, second = claim(tmp_path), None
    try:
        assert slot_of(first) == "0"
        second = claim(tmp_path)
        assert slot_of(second) == "1"
        with claim(tmp_path) as third:
            assert slot_of(third) == "None"
            third.communicate("\n")
        first.kill()
        first.wait()
        with claim(tmp_path) as replacement:
            assert slot_of(replacement) == "0"
            replacement.communicate("\n")
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.communicate()


def test_locks_of_supervisors_that_are_gone_are_tidied_away(tmp_path):
    gone = tmp_path / "999999999-0.lock"
    gone.touch()
    with worker_slot(1, tmp_path) as slot:
        assert slot == 0
        assert [path.name for path in tmp_path.iterdir()] == [f"{os.getppid()}-0.lock"]


def affinities():
    return {frozenset(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()}


def test_every_thread_is_moved_old_and_new_and_all_are_put_back():
    before = frozenset(os.sched_getaffinity(0))
    one = frozenset(sorted(before)[:1])
    ready, done = threading.Event(), threading.Event()

    def wait():
        ready.set()
        done.wait()

    old = threading.Thread(target=wait)
    old.start()
    ready.wait()
    with pinned(Placement(one, one)):
        assert affinities() == {one}
        seen = []
        new = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        new.start()
        new.join()
        assert seen == [one]
    assert affinities() == {before}
    done.set()
    old.join()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_new_thread_leaves_the_event_loops_core():
    first, second = (frozenset({cpu}) for cpu in sorted(os.sched_getaffinity(0))[:2])
    place, seen = Placement(first, second), []

    def run():
        place.place_new()
        seen.append(os.sched_getaffinity(0))

    with pinned(place):
        assert os.sched_getaffinity(0) == first
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert seen == [second]
