"""Arrays in and out of HTTP, fast and right.

What needs an optional library stands in a module of its own: ``bodies`` and ``tables`` (NumPy), ``routes``
(FastAPI and NumPy).
"""

from asgi_mlperf.wire.responses import (
    JSONSettings,
    ORJSONResponse,
    ORJSONStreamingResponse,
    json_settings,
)
from asgi_mlperf.wire.tensor_responses import TensorResponse

__all__ = [
    "JSONSettings",
    "ORJSONResponse",
    "ORJSONStreamingResponse",
    "TensorResponse",
    "json_settings",
]
