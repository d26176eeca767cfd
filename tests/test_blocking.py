from __future__ import annotations

import tempfile

from blockbuster import BlockBuster
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_mlperf import Plugin


def test_nothing_blocks_the_event_loop_at_start_while_serving_or_at_the_end(monkeypatch):
    plugin = Plugin()
    predict = plugin.batched(lambda items: items)

    async def compute(request):
        import colorsys as imported_late
        import gc

        gc.collect()
        return JSONResponse([await plugin.run(abs, -1), await predict(2), imported_late.__name__])

    app = Starlette(routes=[Route("/", compute)])
    plugin.install(app)
    blockbuster = BlockBuster()
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a fresh process
    blockbuster.activate()
    try:
        with TestClient(app) as client:
            for _ in range(20):
                assert client.get("/").json() == [1, 2, "colorsys"]
            for path in ("/metrics", "/livez", "/readyz"):
                assert client.get(path).status_code == 200
    finally:
        blockbuster.deactivate()
