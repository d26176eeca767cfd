"""FastAPI with a batched function as an endpoint of its own: arrays in and out, and nothing between."""

from __future__ import annotations

import numpy as np
from fastapi import FastAPI
from plugin_app import Rows, scores
from starlette.routing import Route
from tuned import OPTIONS

from asgi_mlperf import Plugin
from asgi_mlperf.wire.bodies import ArrayBody

plugin = Plugin()


@plugin.batched(max_size=64)
def predict(rows: list[Rows]) -> Rows:
    return scores(np.stack(rows))


endpoint = ArrayBody(np.float32, "256").endpoint(predict)
app = FastAPI(routes=[Route("/arrays", endpoint, methods=["POST"])], **OPTIONS)
plugin.install(app)
