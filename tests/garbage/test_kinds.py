from __future__ import annotations

import gc
from typing import Any

import pytest

from asgi_mlperf.garbage.kinds import CollectorKind, collector_kind


class Incremental:
    """As CPython 3.14.0 to 3.14.4: young collections are young, the third threshold is not kept."""

    def __init__(self) -> None:
        self.thresholds = (2_000, 10, 0)

    def collect(self, generation: int = 2) -> int:
        return gc.collect(generation)

    def get_threshold(self) -> tuple[int, int, int]:
        return self.thresholds

    def set_threshold(self, threshold0: int, threshold1: int = 10, threshold2: int = 10, /) -> None:
        self.thresholds = (threshold0, threshold1, 0)


class FreeThreaded(Incremental):
    """As the free-threaded builds: every collection looks at the whole heap."""

    def collect(self, generation: int = 2) -> int:
        return gc.collect()


def test_this_interpreter_is_told_by_its_behaviour():
    assert collector_kind() in {CollectorKind.GENERATIONAL, CollectorKind.INCREMENTAL}


@pytest.mark.parametrize(
    ("fake", "expected"),
    [(Incremental(), CollectorKind.INCREMENTAL), (FreeThreaded(), CollectorKind.WHOLE_HEAP)],
)
def test_a_kind_is_told_by_what_a_collector_does(fake: Any, expected: CollectorKind):
    assert collector_kind(fake) is expected


@pytest.mark.parametrize("collector", [gc, Incremental(), FreeThreaded()])
def test_looking_changes_nothing(collector: Any):
    before = collector.get_threshold()
    collector_kind(collector)
    assert collector.get_threshold() == before


def test_only_the_free_threaded_collector_has_no_generations():
    assert [kind for kind in CollectorKind if not kind.has_generations] == [CollectorKind.WHOLE_HEAP]
