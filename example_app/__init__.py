"""An example service: digits and recommendations behind FastAPI, with asgi-mlperf installed."""
