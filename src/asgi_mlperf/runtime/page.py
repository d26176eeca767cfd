"""The built-in page, where the settings ask for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgi_mlperf.telemetry.page.page import Page

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from asgi_mlperf.runtime.health import Health
    from asgi_mlperf.runtime.process import Process
    from asgi_mlperf.telemetry.metrics import Metrics


def pages(process: Process, health: Health, metrics: Metrics) -> dict[str, ASGIApp]:
    """Return the paths of the page and of its figures; none without a token."""
    settings = process.settings.page
    if settings.token is None:
        return {}
    page = Page(
        settings.token.get_secret_value(),
        collect=metrics.registry.collect,
        reasons=lambda: health.readiness.reasons,
        clock=process.clock,
    )
    return {settings.path: page.page, settings.data_path: page.data}
