"""Counts in files, read back by prometheus-client, as a scrape of several workers does."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from asgi_mlperf.telemetry.files import File, FileTally

NAME, TEXT, LABELS = "answer_seconds", "Time to answer.", ("route",)
BOUNDS = (0.1, 1.0)
AMOUNTS = (0.0, 0.05, 0.1, 0.5, 30.0)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def samples(collector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in collector.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_scrape_adds_up_what_two_plugins_of_one_process_counted(directory):
    expected = Histogram(NAME, TEXT, LABELS, buckets=BOUNDS, registry=CollectorRegistry())
    files = [File("histogram"), File("histogram")]
    for file in files:
        tally = FileTally(file, NAME, TEXT, LABELS, ("/a",), BOUNDS)
        for amount in AMOUNTS:
            tally.observe(amount)
            expected.labels("/a").observe(amount)
        file.close(keep=True)
    assert samples(MultiProcessCollector(CollectorRegistry(), str(directory))) == samples(expected)


def test_what_is_not_kept_is_gone_after_the_end(directory):
    file = File("gauge_livesum")
    file.write(file.key("active", "", (), (), "Requests in flight."), 3.0, 0.0)
    assert sum(samples(MultiProcessCollector(CollectorRegistry(), str(directory))).values()) == 3
    file.close(keep=False)
    assert not list(directory.iterdir())
