"""What is told of single requests: ids, timing headers, slow requests, OpenTelemetry."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+:\s*\S+")


class TracingSettings(BaseModel):
    """Who is told what about single requests; all of it is off by default and costs nothing then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: bool = Field(
        default=False,
        description="return each request's id as `x-request-id`, and put it into every log record",
    )
    server_timing: bool = Field(
        default=False, description="say in a `Server-Timing` header where each response's time went"
    )
    server_timing_secret: SecretStr | None = Field(
        default=None,
        description="`name: value` of a request header that asks for `Server-Timing` where not all get it",
    )
    slow_ms: float | None = Field(
        default=None,
        gt=0,
        description="milliseconds to a response, or to a stream's first byte, from which a request is logged "
        "with where its time went",
    )
    otel: bool = Field(
        default=False, description="metrics, spans and exemplars through OpenTelemetry as well (extra `otel`)"
    )

    @field_validator("server_timing_secret")
    @classmethod
    def _is_a_header(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not _HEADER.fullmatch(secret.get_secret_value()):
            raise ValueError("takes a header as `name: value`, the value without spaces")
        return secret

    @property
    def explains(self) -> bool:
        """Whether anybody asks where a request's time went."""
        return self.server_timing or self.server_timing_secret is not None or self.slow_ms is not None
