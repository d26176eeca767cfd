"""The panels as a dashboard that Grafana 10 and newer import."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

from asgi_mlperf.telemetry.dashboard import inside, traffic
from asgi_mlperf.telemetry.dashboard.queries import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.telemetry.dashboard.panels import Panel

SECTIONS = (*traffic.SECTIONS, *inside.SECTIONS)
"""Everything that the dashboard shows, from the outside in."""
_SCHEMA = 39
_WIDTH = 24
_HEIGHT = 8
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard, as Grafana's own export would be."""
    return {
        "uid": "asgi-mlperf",
        "title": "asgi-mlperf",
        "description": "Where every millisecond of a machine-learning backend went.",
        "tags": ["asgi", "fastapi", "machine learning"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _variable("job"), _variable("instance", 'job=~"$job"')]},
        "panels": list(_laid_out()),
    }


def text() -> str:
    """Return the dashboard as JSON."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(label: str, matcher: str = "") -> dict[str, Any]:
    query = f"label_values({REQUESTS}_count{{{matcher}}}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out() -> Iterator[dict[str, Any]]:
    numbers, top = count(1), 0
    for section in SECTIONS:
        yield {
            "id": next(numbers),
            "type": "row",
            "title": section.title,
            "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1},
            "panels": [],
        }
        top += 1
        left = 0
        for panel in section.panels:
            if left + panel.width > _WIDTH:
                left, top = 0, top + _HEIGHT
            place = {"x": left, "y": top, "w": panel.width, "h": _HEIGHT}
            yield {"id": next(numbers), "gridPos": place, **_panel(panel)}
            left += panel.width
        top += _HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": "red", "value": at} for at in panel.thresholds)]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {
                    "fillOpacity": 30 if panel.stacked else 8,
                    "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                    "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
                },
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }
