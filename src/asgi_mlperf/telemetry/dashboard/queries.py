"""The PromQL of panels and rules, put together from the names of series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUESTS = "http_server_request_duration_seconds"
PAUSES = "asgi_mlperf_gc_pause_seconds"
LAG = "asgi_mlperf_event_loop_lag_seconds"
QUEUE = "asgi_mlperf_inference_queue_seconds"
RUN = "asgi_mlperf_inference_run_seconds"
ENCODE = "asgi_mlperf_encode_seconds"
REFUSED = "asgi_mlperf_refused_total"


@dataclass(frozen=True, slots=True)
class Source:
    """Which series are meant, and over which time their rates are taken."""

    selector: str
    window: str

    def of(self, name: str, *matchers: str) -> str:
        """Select the series ``name``."""
        chosen = ", ".join(filter(None, (*matchers, self.selector)))
        return f"{name}{{{chosen}}}" if chosen else name

    def rate(self, name: str, *matchers: str, by: Sequence[str] = ()) -> str:
        """Add up the rates per second, for each value of the labels ``by``."""
        return f"sum{_by(by)}(rate({self.of(name, *matchers)}[{self.window}]))"

    def mean(self, histogram: str, *matchers: str, by: Sequence[str] = ()) -> str:
        """Give the mean of what a histogram took."""
        total = self.rate(f"{histogram}_sum", *matchers, by=by)
        return f"{total} / {self.rate(f'{histogram}_count', *matchers, by=by)}"

    def quantile(self, share: float, histogram: str, *matchers: str, by: Sequence[str] = ()) -> str:
        """Give a quantile of what a histogram took."""
        buckets = self.rate(f"{histogram}_bucket", *matchers, by=(*by, "le"))
        return f"histogram_quantile({share:g}, {buckets})"

    def total(self, name: str, *matchers: str, by: Sequence[str] = ()) -> str:
        """Add up gauges."""
        return f"sum{_by(by)}({self.of(name, *matchers)})"

    def most(self, name: str, *matchers: str, by: Sequence[str] = ()) -> str:
        """Give the highest of gauges."""
        return f"max{_by(by)}({self.of(name, *matchers)})"

    def threads_per_cpu(self, by: Sequence[str] = ()) -> str:
        """Give how many native threads the calls that run may keep busy, for each CPU that there is."""
        calls = self.total("asgi_mlperf_inference_running", by=by)
        threads = self.most("asgi_mlperf_native_threads", by=by)
        return f"{calls} * {threads} / {self.total('asgi_mlperf_cpu_budget_cores', by=by)}"

    def memory_ratio(self, by: Sequence[str] = ()) -> str:
        """Give the share of the memory limit that is in use; nothing where there is no limit."""
        used = self.total("asgi_mlperf_memory_rss_bytes", by=by)
        return f"{used} / {self.most('asgi_mlperf_memory_limit_bytes', by=by)}"

    def error_ratio(self, by: Sequence[str] = ()) -> str:
        """Give the share of requests answered with 5xx, 0 while there are none."""
        everything = self.rate(f"{REQUESTS}_count", by=by)
        errors = self.rate(f"{REQUESTS}_count", 'http_response_status_code=~"5.."', by=by)
        return f"({errors} or 0 * {everything}) / {everything}"


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
