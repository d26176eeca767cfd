"""Make an existing Starlette or FastAPI app a fast, steady machine-learning backend.

``Plugin`` and ``PerfMiddleware`` are the two lines; ``Settings`` is every knob; the rest is what handlers
use and catch. Importing this package reads no environment, starts no thread and leaves gc alone.
"""

from asgi_mlperf.exceptions import (
    ASGIMLPerfError,
    BatchError,
    ConfigurationError,
    DeadlineExceeded,
    NotRunning,
    Overloaded,
    UnserializableError,
)
from asgi_mlperf.middleware import PerfMiddleware
from asgi_mlperf.plugin import Batched, Plugin
from asgi_mlperf.settings import Settings
from asgi_mlperf.wire.responses import ORJSONResponse

__all__ = [
    "ASGIMLPerfError",
    "BatchError",
    "Batched",
    "ConfigurationError",
    "DeadlineExceeded",
    "NotRunning",
    "ORJSONResponse",
    "Overloaded",
    "PerfMiddleware",
    "Plugin",
    "Settings",
    "UnserializableError",
]
