"""What can be set about the garbage schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_MOST_OBJECTS = 2**31 - 1  # what gc.set_threshold() takes


class GarbageSettings(BaseModel):
    """When the garbage collector may run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["scheduled", "freeze", "off"] = Field(
        default="scheduled",
        description="`scheduled`: between requests; `freeze`: only freeze at start-up; `off`: leave it alone",
    )
    young_objects: int = Field(
        default=2_000,
        ge=1,
        le=_MOST_OBJECTS,
        description="new objects that make a quiet moment worth a young collection",
    )
    backstop_objects: int = Field(
        default=1_000_000,
        ge=1_000,
        le=_MOST_OBJECTS,
        description="new objects at which CPython collects by itself, should no request end before",
    )
    pause_ms: float = Field(
        default=2.0,
        gt=0,
        description="milliseconds a collection may take while requests are in flight",
    )
    young_share: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="share of wall time that young collections may spend on objects that live on",
    )
    young_growth_mb: int = Field(
        default=32,
        ge=1,
        description="growth of resident memory, in MiB and at most a quarter of what is free, that is worth "
        "a young collection whatever the traffic",
    )
    full_objects: int = Field(
        default=100_000,
        ge=1_000,
        le=_MOST_OBJECTS,
        description="objects that survived, from which a full collection is due",
    )
    full_growth_mb: int = Field(
        default=64,
        ge=1,
        description="growth of resident memory, in MiB, that makes a full collection due",
    )
    full_interval_s: float = Field(
        default=60.0,
        gt=0,
        description="seconds after which any survivors make a full collection due",
    )
    full_share: float = Field(default=0.01, gt=0, le=1, description="the same share for full collections")
    quiet_ms: float = Field(
        default=100.0,
        ge=0,
        description="milliseconds without traffic before a long full collection",
    )
    max_deferral_s: float = Field(
        default=120.0,
        gt=0,
        description="seconds a due full collection may be put off by busy traffic",
    )
    refreeze_idle_s: float = Field(
        default=5.0,
        gt=0,
        description="seconds without traffic before what was loaded late is frozen too",
    )
    valve_growth_mb: int = Field(
        default=512,
        ge=1,
        description="growth of resident memory, in MiB and at most half of what is free, that re-arms "
        "CPython's own collections",
    )
    memory_share: float = Field(
        default=0.85,
        gt=0,
        le=1,
        description="share of the memory limit beyond which frozen objects are collected too",
    )
    check_ms: float = Field(
        default=50.0,
        ge=1,
        description="milliseconds between looks at memory, from a thread of its own; less where it is short, "
        "500 while nothing happens",
    )
