"""Starlette with one decorator, and the plugin's arrays in and out."""

from __future__ import annotations

import numpy as np
from plugin_app import Rows, scores
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_mlperf import ORJSONResponse, Plugin
from asgi_mlperf.wire.bodies import ArrayBody

plugin = Plugin()
row = ArrayBody(np.float32, "256")


@plugin.batched(max_size=64)
def predict(rows: list[Rows]) -> Rows:
    return scores(np.stack(rows))


async def arrays(request: Request) -> Response:
    return ORJSONResponse(await predict(await row(request)))


app = Starlette(routes=[Route("/arrays", arrays, methods=["POST"])])
plugin.install(app)
