from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from example_app.demo.load import Measured
from example_app.demo.report import Comparison, Figures, as_json, figures, markdown, percentile, table
from rich.console import Console

STOCK = Figures(requests=500, seconds=5, p50_ms=40.0, p99_ms=170.0, requests_per_s=100.0)
PLUGIN = Figures(requests=1500, seconds=5, p50_ms=10.0, p99_ms=34.0, requests_per_s=300.0)
COMPARISON = Comparison("/classify", 32, STOCK, PLUGIN)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 1001)], 99, 990.0),
        ([1.0, 2.0], 100, 2.0),
        ([1.0, 2.0], 0, 1.0),
    ],
)
def test_a_percentile_is_the_value_of_its_nearest_rank(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_figures_sum_up_unordered_latencies_in_milliseconds() -> None:
    summed = figures(Measured(seconds=2.0, latencies_s=[0.004, 0.001, 0.003, 0.002]))
    assert summed == Figures(requests=4, seconds=2.0, p50_ms=2.0, p99_ms=4.0, requests_per_s=2.0)


def test_above_one_is_better_in_every_ratio() -> None:
    assert COMPARISON.ratios == {"p50": 4.0, "p99": 5.0, "requests_per_s": 3.0}


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    wide = Comparison(
        "/classify",
        32,
        replace(STOCK, p50_ms=123.4, p99_ms=1234.5, requests_per_s=1234),
        replace(PLUGIN, requests_per_s=5678),
    )
    output = io.StringIO()
    Console(file=output, width=80).print(table([wide]))
    assert "1234 → 34.0 (36.3x)" in output.getvalue()
    assert "1234 → 5678 (4.6x)" in output.getvalue()
    assert "/classify (32)" in output.getvalue()


def test_markdown_holds_the_same_row_and_what_it_was_measured_on() -> None:
    text = markdown([COMPARISON])
    lines = text.splitlines()
    assert lines[2] == "| /classify (32) | 40.0 → 10.0 (4.0x) | 170 → 34.0 (5.0x) | 100 → 300 (3.0x) |"
    assert len({line.count("|") for line in lines[:3]}) == 1
    assert "5 s" in text
    assert "CPython" in text


def test_json_holds_every_figure() -> None:
    written = json.loads(json.dumps(as_json([COMPARISON], {"stock": 1.0, "plugin": None})))
    assert written["endpoints"][0]["stock"]["p99_ms"] == 170.0
    assert written["endpoints"][0]["ratios"]["p99"] == 5.0
    assert written["memory_mb"] == {"stock": 1.0, "plugin": None}
    assert written["host"]["cpus"] >= 1
