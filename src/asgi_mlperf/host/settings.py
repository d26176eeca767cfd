"""What users may say of native threads and placement."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ThreadSettings(BaseModel):
    """Native threads and CPU placement of one worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="cap native threads at all")
    native: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="native threads an op may use; default: the CPU budget ÷ the calls that run",
    )
    interop: int = Field(default=1, ge=1, le=1024, description="torch inter-op threads")
    cpus: float | None = Field(
        default=None,
        gt=0,
        description="CPUs of all workers together; default: affinity and cgroup quota",
    )
    pin: bool = Field(default=False, description="give each worker physical cores of its own (Linux)")
    loop_core: bool = Field(
        default=False, description="with `PIN`: keep one of the worker's cores for the event loop alone"
    )
    keep_freed_memory: bool = Field(
        default=True,
        description="share few heaps, which keep up to 64 MiB each that is free for the next request (glibc)",
    )
    self_check: bool = Field(
        default=True, description="at start, count the threads that an op starts and warn if above the cap"
    )
