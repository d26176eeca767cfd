from __future__ import annotations

import json
import re
from itertools import combinations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from tests.support import call

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.cli import main
from asgi_mlperf.telemetry.dashboard import grafana, rules
from asgi_mlperf.telemetry.dashboard.grafana import SECTIONS

SERIES = re.compile(r"\b(?:http_server|asgi_mlperf)_\w+")
PANELS = [panel for section in SECTIONS for panel in section.panels]
EXPRESSIONS = [
    *(query.expression for panel in PANELS for query in panel.queries),
    *(recording.expression for recording in rules.recordings()),
    *(alert.expression for alert in rules.alerts(rules.Targets())),
]


SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture
async def known() -> set[str]:
    """The names of every series that a running plugin has, and of what the rules record of them."""
    plugin, app = Plugin(Settings(metrics={"default_registry": False})), Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        scrape = (await call(app, "/metrics")).body.decode()
    names = {
        f"{family.name}{suffix}"
        for family in text_string_to_metric_families(scrape)
        for suffix in SUFFIXES[family.type]
        if not family.name.endswith("_created")
    }
    return names | {part for recording in rules.recordings() for part in recording.name.split(":")}


async def test_panels_and_rules_ask_only_for_series_that_there_are(known):
    asked = {name for expression in EXPRESSIONS for name in SERIES.findall(expression)}
    assert asked - known - {"asgi_mlperf_memory_limit_bytes"} == set()


async def test_every_series_is_on_the_dashboard(known):
    asked = {name for panel in PANELS for query in panel.queries for name in SERIES.findall(query.expression)}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known if SERIES.fullmatch(name)}
    names |= {"asgi_mlperf_memory_limit_bytes"}  # not there without a limit
    recorded = {part for recording in rules.recordings() for part in recording.name.split(":")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert names - shown - recorded - {"asgi_mlperf_gc_valve_openings_total"} == set()


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    panels = grafana.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
    assert all(place["x"] + place["w"] <= 24 for place in [panel["gridPos"] for panel in panels])


def test_every_panel_says_what_to_read_from_it():
    assert all(panel.description.endswith(".") and panel.unit and panel.queries for panel in PANELS)
    assert len({panel.title for panel in PANELS}) == len(PANELS)


def test_the_command_prints_the_dashboard(capsys):
    assert main(["dashboard"]) == 0
    assert json.loads(capsys.readouterr().out) == grafana.dashboard()


def test_the_command_prints_rules_for_the_targets_that_are_given(capsys):
    assert main(["rules", "--latency-seconds", "0.25", "--error-ratio", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "p99_5m > 0.25" in printed
    assert "More than 0.10% of requests" in printed
    assert printed != rules.text()


@pytest.mark.parametrize("target", ["--latency-seconds=0", "--error-ratio=1", "--latency-seconds=nan"])
def test_targets_that_cannot_be_met_are_told_and_exit_2(target, capsys):
    assert main(["rules", target]) == 2
    assert "must be above 0" in capsys.readouterr().err
