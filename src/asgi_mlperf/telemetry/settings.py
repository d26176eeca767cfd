"""What is measured of requests, and where it is served."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from asgi_mlperf.telemetry.presets import INSTRUMENTATOR_BOUNDS


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 < low < high < math.inf for low, high in pairwise((*bounds, bounds[-1] + 1))):
        raise ValueError("bucket bounds are positive, finite seconds in rising order")
    return bounds


class MetricsSettings(BaseModel):
    """What is measured and where it is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="measure requests and inference, and serve the metrics")
    path: str = Field(default="/metrics", pattern="^/", description="path of the metrics endpoint")
    buckets: Annotated[tuple[float, ...], NoDecode, BeforeValidator(_split), AfterValidator(_rising)] = Field(
        default=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        min_length=1,
        description="upper bounds of the request duration histogram, in seconds, comma-separated",
    )
    exclude: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(), description="route templates that are not measured, comma-separated"
    )
    default_registry: bool = Field(
        default=True, description="also serve prometheus-client's default registry (process and own metrics)"
    )
    preset: Literal["otel", "fastapi-instrumentator"] = Field(
        default="otel",
        description="names, labels and buckets of the request series: OpenTelemetry's, or those of "
        "prometheus-fastapi-instrumentator",
    )
    token: SecretStr | None = Field(
        default=None, min_length=1, description="what scrapers must send as `Authorization: Bearer …`"
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="serve the metrics on ports of their own instead, the workers on this one and the next",
    )
    host: str = Field(default="0.0.0.0", description="address that `PORT` is opened on")  # noqa: S104 - asked for
    cache_ms: int = Field(
        default=0, ge=0, le=60_000, description="how long a rendered page is kept for other scrapers"
    )

    @property
    def request_buckets(self) -> tuple[float, ...]:
        """The bounds that requests are counted in, seconds."""
        return self.buckets if self.preset == "otel" else INSTRUMENTATOR_BOUNDS
