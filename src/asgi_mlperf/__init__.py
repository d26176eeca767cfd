"""Make an existing Starlette or FastAPI app a fast, steady machine-learning backend.

``Plugin`` and ``PerfMiddleware`` are the two lines; ``Settings`` is every knob; the rest is what handlers
use and catch. Importing this package reads no environment, starts no thread and leaves gc alone.
"""

from asgi_mlperf.declared import Batched, BatchedStream, InferencePool, RemoteLimit
from asgi_mlperf.exceptions import (
    ASGIMLPerfError,
    BatchError,
    BodyRefused,
    ClientLeft,
    ConfigurationError,
    DeadlineExceeded,
    NotRunning,
    Overloaded,
    UnserializableError,
)
from asgi_mlperf.inference.deadlines import time_left
from asgi_mlperf.middleware import PerfMiddleware
from asgi_mlperf.plugin import Plugin
from asgi_mlperf.settings import Settings
from asgi_mlperf.telemetry.request_ids import add_request_id, current_request_id
from asgi_mlperf.wire import ORJSONResponse, ORJSONStreamingResponse, TensorResponse

__all__ = [
    "ASGIMLPerfError",
    "BatchError",
    "Batched",
    "BatchedStream",
    "BodyRefused",
    "ClientLeft",
    "ConfigurationError",
    "DeadlineExceeded",
    "InferencePool",
    "NotRunning",
    "ORJSONResponse",
    "ORJSONStreamingResponse",
    "Overloaded",
    "PerfMiddleware",
    "Plugin",
    "RemoteLimit",
    "Settings",
    "TensorResponse",
    "UnserializableError",
    "add_request_id",
    "current_request_id",
    "time_left",
]
