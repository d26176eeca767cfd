"""Starlette with one decorator, and the plugin's arrays in and out."""

from __future__ import annotations

import numpy as np
from plugin_app import Rows, scores
from starlette.applications import Starlette
from starlette.routing import Route

from asgi_mlperf import Plugin
from asgi_mlperf.wire.bodies import ArrayBody

plugin = Plugin()


@plugin.batched(max_size=64)
def predict(rows: list[Rows]) -> Rows:
    return scores(np.stack(rows))


endpoint = ArrayBody(np.float32, "256").endpoint(predict)
app = Starlette(routes=[Route("/arrays", endpoint, methods=["POST"])])
plugin.install(app)
