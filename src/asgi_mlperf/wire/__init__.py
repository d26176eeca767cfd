"""Arrays in and out of HTTP, fast and right."""

from asgi_mlperf.wire.responses import JSONSettings, ORJSONResponse, json_settings, use_json_settings

__all__ = ["JSONSettings", "ORJSONResponse", "json_settings", "use_json_settings"]
