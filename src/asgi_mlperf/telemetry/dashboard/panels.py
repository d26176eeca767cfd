"""What a panel of the dashboard is, and what most of them ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgi_mlperf.telemetry.dashboard.queries import Source

FROM = Source('job=~"$job", instance=~"$instance"', "$__rate_interval")
_QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how Grafana names what it gives."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: its queries, the unit in Grafana's spelling, and what to read from it."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    width: int = 8
    stacked: bool = False
    thresholds: tuple[float, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Section:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


def quantiles(histogram: str, *matchers: str, by: str = "") -> tuple[Query, ...]:
    """Ask for the median, p95 and p99 of a histogram."""
    labels, legend = ((by,), f" {{{{{by}}}}}") if by else ((), "")
    return tuple(
        Query(FROM.quantile(share, histogram, *matchers, by=labels), f"p{share * 100:g}{legend}")
        for share in _QUANTILES
    )


def by_label(expression: str, label: str) -> tuple[Query, ...]:
    """Ask for one line for each value of a label."""
    return (Query(expression, f"{{{{{label}}}}}"),)
