"""FastAPI's own options as docs/tuning.md has them: no telemetry if nobody listens, no pages on the API."""

from __future__ import annotations

from typing import Any

OPTIONS: dict[str, Any] = {
    "telemetry": {"tracing": False, "metrics": False, "logs": False},
    "openapi_url": None,
}
